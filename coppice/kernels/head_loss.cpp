#include "coppice/kernels/head_loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>

#include "coppice/base/check.h"
#include "coppice/base/lane_sum.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels {
namespace {

using detail::load;
using detail::store;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The number of tokens whose logits exist at a time: a few MB, but enough rows for the GEMM.
int64_t chunk_tokens(int64_t vocabulary) { return std::max<int64_t>(256, ((1 << 22) / vocabulary + 31) / 32 * 32); }

template <class T>
float row_max(const T* logits, int64_t n) {
  float lane[16];
  std::fill(std::begin(lane), std::end(lane), -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) lane[j] = std::max(lane[j], load(logits[i + j]));
  }
  for (; i < n; ++i) lane[0] = std::max(lane[0], load(logits[i]));
  return *std::max_element(std::begin(lane), std::end(lane));
}

/// The cross-entropy of one token.
template <class T>
float row_loss(const T* __restrict logits, int64_t n, int64_t target, float& max, float& sum) {
  max = row_max(logits, n);
  const float top = max;
  sum = lane_sum<float>(n, [&](int64_t i) { return detail::exp_f32(load(logits[i]) - top); });
  return std::log(sum) + max - load(logits[target]);
}

/// Replaces logits by scale * (softmax - one_hot(target)).
template <class T>
void row_gradient(T* __restrict logits, int64_t n, int64_t target, float max, float sum, float scale) {
  const float at_target = scale * (detail::exp_f32(load(logits[target]) - max) / sum - 1.0f);
  const float factor = scale / sum;
  for (int64_t i = 0; i < n; ++i) store(logits[i], factor * detail::exp_f32(load(logits[i]) - max));
  store(logits[target], at_target);
}

/// Losses of a chunk's rows; with `scale` != 0 its logits become their gradients.
template <class T>
void chunk_losses(const at::Tensor& logits_CV, const int64_t* target, float scale, float* loss) {
  const int64_t n = logits_CV.size(1);
  auto* const logits = logits_CV.mutable_data_ptr<T>();
  parallel_ranges(logits_CV.size(0), std::max<int64_t>(1, (1 << 15) / n), [=](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      T* const row = logits + c * n;
      loss[c] = 0.0f;
      if (target[c] < 0) {
        if (scale != 0.0f) std::fill(row, row + n, T(0.0f));
        continue;
      }
      float max = 0, sum = 0;
      loss[c] = row_loss(row, n, target[c], max, sum);
      if (scale != 0.0f) row_gradient(row, n, target[c], max, sum, scale);
    }
  });
}

struct Targets {
  at::Tensor index_T;
  int64_t counted = 0;
};

Targets check_targets(const at::Tensor& target_T, int64_t vocabulary) {
  Targets out{target_T.contiguous(), 0};
  const auto* const target = out.index_T.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < out.index_T.numel(); ++t) {
    if (target[t] < -1 || target[t] >= vocabulary) {
      throw Error(ErrorCode::kFormat,
                  cat("target id ", target[t], " at position ", t, ": found outside the vocabulary of ", vocabulary,
                      "; wanted ids below it (was the data tokenized for another model?)"));
    }
    out.counted += target[t] >= 0;
  }
  return out;
}

struct ChunkedHead {
  at::Tensor loss_T, grad_x_TD, grad_w_VD;  // gradients of the mean, only if requested
  int64_t counted = 0;
};

template <class T>
ChunkedHead run_chunks(const at::Tensor& x_TD, const at::Tensor& w_VD, const at::Tensor& target_T, bool with_gradients,
                       bool with_weight_gradient) {
  const int64_t tokens = x_TD.size(0), vocabulary = w_VD.size(0), chunk = chunk_tokens(vocabulary);
  const auto targets = check_targets(target_T, vocabulary);
  const auto* const target = targets.index_T.const_data_ptr<int64_t>();
  const auto f32 = x_TD.options().dtype(at::kFloat);
  ChunkedHead out{at::empty({tokens}, f32), {}, {}, targets.counted};
  if (with_gradients) {
    out.grad_x_TD = at::empty_like(x_TD);
    if (with_weight_gradient) out.grad_w_VD = at::zeros(w_VD.sizes(), f32);
  }
  const float scale = with_gradients ? 1.0f / static_cast<float>(std::max<int64_t>(1, targets.counted)) : 0.0f;
  for (int64_t t = 0; t < tokens; t += chunk) {
    const int64_t rows = std::min(chunk, tokens - t);
    const auto x_CD = x_TD.narrow(0, t, rows);
    const auto logits_CV = at::mm(x_CD, w_VD.t());
    chunk_losses<T>(logits_CV, target + t, scale, out.loss_T.mutable_data_ptr<float>() + t);
    if (!with_gradients) continue;
    auto grad_x_CD = out.grad_x_TD.narrow(0, t, rows);
    at::mm_out(grad_x_CD, logits_CV, w_VD);
    if (!with_weight_gradient) continue;
    if constexpr (std::is_same_v<T, float>) {
      out.grad_w_VD.addmm_(logits_CV.t(), x_CD);
    } else {
      out.grad_w_VD.add_(at::mm(logits_CV.t(), x_CD));
    }
  }
  return out;
}

struct HeadLoss : torch::autograd::Function<HeadLoss> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& w_VD,
                            const at::Tensor& target_T, bool with_gradients, bool with_weight_gradient) {
    auto out = detail::with_scalar(x_TD, [&]<class T>(T) {
      return run_chunks<T>(x_TD.contiguous(), w_VD.contiguous(), target_T, with_gradients, with_weight_gradient);
    });
    if (with_gradients) {
      ctx->saved_data["x"] = out.grad_x_TD;
      if (with_weight_gradient) ctx->saved_data["w"] = out.grad_w_VD.to(w_VD.scalar_type());
    }
    const auto* const loss = out.loss_T.const_data_ptr<float>();
    double sum = 0;
    for (int64_t t = 0; t < out.loss_T.numel(); ++t) sum += loss[t];
    return at::full({}, sum / static_cast<double>(std::max<int64_t>(1, out.counted)), out.loss_T.options());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    COPPICE_CHECK(!ctx->saved_data.empty(), "head_loss is differentiable once");
    auto grad_x = ctx->saved_data["x"].toTensor();
    const auto kept = ctx->saved_data.find("w");
    auto grad_w = kept == ctx->saved_data.end() ? at::Tensor() : kept->second.toTensor();
    ctx->saved_data.clear();  // so that the parameter's gradient reuses the memory instead of copying it
    const float scale = grads[0].item<float>();
    if (scale != 1.0f) {
      grad_x.mul_(scale);
      if (grad_w.defined()) grad_w.mul_(scale);
    }
    return {std::move(grad_x), std::move(grad_w), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor head_loss(const at::Tensor& x_TD, const at::Tensor& w_VD, const at::Tensor& target_T) {
  const bool with_gradients = at::GradMode::is_enabled() && (x_TD.requires_grad() || w_VD.requires_grad());
  return HeadLoss::apply(x_TD, w_VD, target_T, with_gradients, with_gradients && w_VD.requires_grad());
}

at::Tensor head_token_losses(const at::Tensor& x_TD, const at::Tensor& w_VD, const at::Tensor& target_T) {
  at::NoGradGuard no_grad;
  return detail::with_scalar(x_TD, [&]<class T>(T) {
    return run_chunks<T>(x_TD.contiguous(), w_VD.contiguous(), target_T, false, false).loss_T;
  });
}

}  // namespace coppice::kernels
