#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "coppice/kernels/aten/widened_detail.h"
#include "coppice/kernels/head_loss_detail.h"

namespace coppice::kernels::aten {
namespace {

constexpr int64_t kLogits = 1 << 27, kFewestRows = 256, kQuantum = 32;
constexpr int64_t kPiece = 1 << 24;

/// Adds left' right to a sum in f32.
void add_product(at::Tensor& sum_VD, const at::Tensor& left_CV, const at::Tensor& right_CD) {
  if (left_CV.scalar_type() == sum_VD.scalar_type()) {
    sum_VD.addmm_(left_CV.t(), right_CD);
  } else {
    sum_VD.add_(at::mm(left_CV.t(), right_CD));
  }
}

}  // namespace

detail::HeadForward head_forward_by(const detail::HeadInputs& in, int64_t rows) {
  const int64_t tokens = in.x_TD.size(0);
  const auto dtype = in.x_TD.scalar_type();
  const auto options = in.x_TD.options().dtype(wide(dtype));
  const auto counted_T = in.target_T != -1;
  // Other targets outside the vocabulary stay what they are, so that the look-up refuses them.
  const auto index_T = at::where(counted_T, in.target_T, 0);
  const auto count = counted_T.sum().clamp_min(1);
  const auto share_T = counted_T.to(options.dtype()) / count;

  detail::HeadForward out{at::empty({tokens}, options), {}, {}, {}};
  at::Tensor sum_w_VD;
  if (in.with_gradients) out.grad_x_TD = at::empty_like(in.x_TD);
  if (in.with_weight_gradient) sum_w_VD = at::zeros(in.w_VD.sizes(), options);
  for (int64_t t = 0; t < tokens; t += rows) {
    const auto part = [&](const at::Tensor& x) { return x.narrow(0, t, std::min(rows, tokens - t)); };
    const auto x_CD = part(in.x_TD), index_C1 = part(index_T).unsqueeze(1);
    auto logits_CV = widened(at::mm(x_CD, in.w_VD.t()));
    const auto max_C1 = logits_CV.amax(1, /*keepdim=*/true), target_C1 = logits_CV.gather(1, index_C1);
    logits_CV.sub_(max_C1).exp_();
    const auto sum_C1 = logits_CV.sum(1, /*keepdim=*/true);
    const auto loss_C = (sum_C1.log() + max_C1 - target_C1).squeeze(1);
    part(out.loss_T).copy_(at::where(part(counted_T), loss_C, 0));
    if (!in.with_gradients) continue;
    logits_CV.div_(sum_C1).scatter_add_(1, index_C1, at::full_like(max_C1, -1)).mul_(part(share_T).unsqueeze(1));
    const auto grad_CV = logits_CV.to(dtype);
    logits_CV.reset();
    auto grad_x_CD = part(out.grad_x_TD);
    at::mm_out(grad_x_CD, grad_CV, in.w_VD);
    if (in.with_weight_gradient) add_product(sum_w_VD, grad_CV, x_CD);
  }
  if (in.with_weight_gradient) out.grad_w_VD = sum_w_VD.to(in.w_VD.scalar_type());
  out.mean = (out.loss_T.sum(at::kDouble) / count).to(options.dtype());
  return out;
}

detail::HeadForward head_forward(const detail::HeadInputs& in) {
  const int64_t rows = kLogits / in.w_VD.size(0) / kQuantum * kQuantum;
  return head_forward_by(in, std::max(kFewestRows, rows));
}

void scale_in_place(at::Tensor& values, const at::Tensor& factor) {
  if (values.scalar_type() == factor.scalar_type()) {
    values.mul_(factor);
    return;
  }
  const auto flat = values.view({-1});  // bf16: libtorch would round the factor to it first
  for (int64_t begin = 0; begin < flat.numel(); begin += kPiece) {
    auto part = flat.narrow(0, begin, std::min(kPiece, flat.numel() - begin));
    part.copy_(widened(part).mul_(factor));
  }
}

}  // namespace coppice::kernels::aten
