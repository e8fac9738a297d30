#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "coppice/base/error.h"
#include "coppice/base/lane_sum.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/head_loss_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {
namespace {

using detail::exp_f32;

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
  sum = lane_sum<float>(n, [&](int64_t i) { return exp_f32(load(logits[i]) - top); });
  return std::log(sum) + max - load(logits[target]);
}

/// Replaces logits by scale * (softmax - one_hot(target)).
template <class T>
void row_gradient(T* __restrict logits, int64_t n, int64_t target, float max, float sum, float scale) {
  const float at_target = scale * (exp_f32(load(logits[target]) - max) / sum - 1.0f);
  const float factor = scale / sum;
  for (int64_t i = 0; i < n; ++i) store(logits[i], factor * exp_f32(load(logits[i]) - max));
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

/// The number of targets that count.
int64_t check_targets(const at::Tensor& target_T, int64_t vocabulary) {
  int64_t counted = 0;
  const auto* const target = target_T.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < target_T.numel(); ++t) {
    if (target[t] < -1 || target[t] >= vocabulary) {
      throw Error(ErrorCode::kFormat,
                  cat("target id ", target[t], " at position ", t, ": found outside the vocabulary of ", vocabulary,
                      "; wanted ids below it (was the data tokenized for another model?)"));
    }
    counted += target[t] >= 0;
  }
  return counted;
}

template <class T>
detail::HeadForward forward(const detail::HeadInputs& in) {
  const int64_t tokens = in.x_TD.size(0), vocabulary = in.w_VD.size(0), chunk = chunk_tokens(vocabulary);
  const auto counted = std::max<int64_t>(1, check_targets(in.target_T, vocabulary));
  const auto* const target = in.target_T.const_data_ptr<int64_t>();
  const auto f32 = in.x_TD.options().dtype(at::kFloat);
  detail::HeadForward out{at::empty({tokens}, f32), {}, {}, {}};
  at::Tensor sum_w_VD;
  if (in.with_gradients) out.grad_x_TD = at::empty_like(in.x_TD);
  if (in.with_weight_gradient) sum_w_VD = at::zeros(in.w_VD.sizes(), f32);
  auto* const loss = out.loss_T.mutable_data_ptr<float>();
  const float scale = in.with_gradients ? 1.0f / static_cast<float>(counted) : 0.0f;
  for (int64_t t = 0; t < tokens; t += chunk) {
    const int64_t rows = std::min(chunk, tokens - t);
    const auto x_CD = in.x_TD.narrow(0, t, rows);
    const auto logits_CV = at::mm(x_CD, in.w_VD.t());
    chunk_losses<T>(logits_CV, target + t, scale, loss + t);
    if (!in.with_gradients) continue;
    auto grad_x_CD = out.grad_x_TD.narrow(0, t, rows);
    at::mm_out(grad_x_CD, logits_CV, in.w_VD);
    if (!in.with_weight_gradient) continue;
    if constexpr (std::is_same_v<T, float>) {
      sum_w_VD.addmm_(logits_CV.t(), x_CD);
    } else {
      sum_w_VD.add_(at::mm(logits_CV.t(), x_CD));
    }
  }
  if (in.with_weight_gradient) out.grad_w_VD = sum_w_VD.to(in.w_VD.scalar_type());
  double sum = 0;
  for (int64_t t = 0; t < tokens; ++t) sum += loss[t];
  out.mean = at::full({}, sum / static_cast<double>(counted), f32);
  return out;
}

}  // namespace

detail::HeadForward head_forward(const detail::HeadInputs& in) {
  return with_scalar(in.x_TD, [&]<class T>(T) { return forward<T>(in); });
}

void scale_in_place(at::Tensor& values, const at::Tensor& factor) {
  const auto scale = factor.item<float>();
  if (scale != 1.0f) values.mul_(scale);
}

}  // namespace coppice::kernels::cpu
