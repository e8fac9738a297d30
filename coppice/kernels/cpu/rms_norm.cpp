#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "coppice/base/lane_sum.h"
#include "coppice/kernels/cpu/lanes_detail.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/elementwise_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {
namespace {

int64_t rows_per_task(int64_t width) { return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, width)); }

template <class T, class W>
COPPICE_FOR_AVX512_TOO float normalise_row(const T* __restrict x, const W* __restrict w, T* __restrict out, int64_t n,
                                           double epsilon) {
  const float squares = lane_sum<float>(n, [&](int64_t i) { return load(x[i]) * load(x[i]); });
  const auto scale = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(n) + epsilon));
  for (int64_t i = 0; i < n; ++i) {
    W rounded;  // rounded to the coarser dtype, or not at all
    store(rounded, load(x[i]) * scale);
    store(out[i], load(rounded) * load(w[i]));
  }
  return scale;
}

template <class T, class W>
COPPICE_FOR_AVX512_TOO void backward_row(const T* __restrict x, const W* __restrict w, const T* __restrict grad,
                                         float scale, T* __restrict grad_x, float* __restrict grad_w, int64_t n) {
  const float dot = lane_sum<float>(n, [&](int64_t i) { return load(grad[i]) * load(w[i]) * load(x[i]); });
  const float pull = dot * scale * scale / static_cast<float>(n);
  for (int64_t i = 0; i < n; ++i) {
    const float d = load(grad[i]), value = load(x[i]);
    store(grad_x[i], scale * (d * load(w[i]) - value * pull));
    grad_w[i] += d * value * scale;
  }
}

/// The rows of x [begin, end). In lanes if they are f32 and fill them, with the same bits.
template <class T, class W>
void normalise_rows(const T* x, const W* w, T* out, float* scale, int64_t begin, int64_t end, int64_t n,
                    double epsilon) {
  if constexpr (std::is_same_v<T, float> && std::is_same_v<W, float>) {
    if (n % kNarrowLanes == 0) {
      const NormRows rows{x + begin * n, end - begin, n};
      return lanes_of(this_processor()).normalise(rows, w, epsilon, out + begin * n, scale + begin);
    }
  }
  for (int64_t r = begin; r < end; ++r) scale[r] = normalise_row(x + r * n, w, out + r * n, n, epsilon);
}

template <class T, class W>
void backward_rows(const T* x, const W* w, const T* grad, const float* scale, T* grad_x, float* grad_w, int64_t begin,
                   int64_t end, int64_t n) {
  if constexpr (std::is_same_v<T, float> && std::is_same_v<W, float>) {
    if (n % kNarrowLanes == 0) {
      const NormRows rows{x + begin * n, end - begin, n};
      return lanes_of(this_processor())
          .normalise_backward(rows, w, scale + begin, grad + begin * n, grad_x + begin * n, grad_w);
    }
  }
  for (int64_t r = begin; r < end; ++r) backward_row(x + r * n, w, grad + r * n, scale[r], grad_x + r * n, grad_w, n);
}

template <class F>
void with_scalars(const at::Tensor& x, const at::Tensor& weight, const F& f) {
  with_scalar(x, [&]<class T>(T t) { with_scalar(weight, [&]<class W>(W w) { f(t, w); }); });
}

}  // namespace

detail::RmsNormForward rms_norm_forward(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const int64_t n = weight.numel(), rows = x.numel() / n;
  const detail::RmsNormForward forward{at::empty_like(x), at::empty({rows}, x.options().dtype(at::kFloat))};
  with_scalars(x, weight, [&]<class T, class W>(T, W) {
    const auto* from = x.const_data_ptr<T>();
    const auto* w = weight.const_data_ptr<W>();
    auto* to = forward.out.mutable_data_ptr<T>();
    auto* scales = forward.scale_R.mutable_data_ptr<float>();
    parallel_ranges(rows, rows_per_task(n),
                    [=](int64_t begin, int64_t end) { normalise_rows(from, w, to, scales, begin, end, n, epsilon); });
  });
  return forward;
}

detail::RmsNormGradients rms_norm_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale_R,
                                           const at::Tensor& grad) {
  const int64_t n = weight.numel(), rows = scale_R.numel(), grain = rows_per_task(n);
  const detail::RmsNormGradients gradients{at::empty_like(x), at::empty_like(weight)};
  // One partial sum per task, added in order: the same bits for any number of threads.
  const int64_t tasks = (rows + grain - 1) / grain;
  const auto partial = at::zeros({tasks + 1, n}, scale_R.options());
  with_scalars(x, weight, [&]<class T, class W>(T, W) {
    const auto *from = x.const_data_ptr<T>(), *d = grad.const_data_ptr<T>();
    const auto* w = weight.const_data_ptr<W>();
    const auto* scales = scale_R.const_data_ptr<float>();
    auto* to = gradients.x.mutable_data_ptr<T>();
    auto* sums = partial.mutable_data_ptr<float>();
    parallel_ranges(rows, grain, [=](int64_t begin, int64_t end) {
      backward_rows(from, w, d, scales, to, sums + (begin / grain) * n, begin, end, n);
    });
    float* const total = sums + tasks * n;
    for (int64_t task = 0; task < tasks; ++task) {
      for (int64_t i = 0; i < n; ++i) total[i] += sums[task * n + i];
    }
    auto* const out = gradients.weight.mutable_data_ptr<W>();
    for (int64_t i = 0; i < n; ++i) store(out[i], total[i]);
  });
  return gradients;
}

}  // namespace coppice::kernels::cpu
