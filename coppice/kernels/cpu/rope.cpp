#include <ATen/ops/empty_like.h>

#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/elementwise_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {
namespace {

template <class T>
void turn_head(const T* __restrict x, const float* __restrict cos, const float* __restrict sin, float direction,
               T* __restrict out, int64_t half, int64_t width) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = load(x[i]), b = load(x[i + half]), s = direction * sin[i];
    store(out[i], a * cos[i] - b * s);
    store(out[i + half], b * cos[i] + a * s);
  }
  for (int64_t i = 2 * half; i < width; ++i) out[i] = x[i];
}

}  // namespace

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, double direction) {
  const int64_t heads = x.size(2), width = x.size(3), angles = cos.size(0), half = cos.size(1);
  const auto sign = static_cast<float>(direction);
  const auto out = at::empty_like(x);
  with_scalar(x, [&]<class T>(T) {
    const auto* from = x.const_data_ptr<T>();
    auto* to = out.mutable_data_ptr<T>();
    const auto *c = cos.const_data_ptr<float>(), *s = sin.const_data_ptr<float>();
    const int64_t grain = std::max<int64_t>(1, (1 << 15) / (heads * width));
    parallel_ranges(x.size(0) * x.size(1), grain, [=](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        const int64_t angle = (token % angles) * half;
        for (int64_t head = 0; head < heads; ++head) {
          const int64_t at = (token * heads + head) * width;
          turn_head(from + at, c + angle, s + angle, sign, to + at, half, width);
        }
      }
    });
  });
  return out;
}

}  // namespace coppice::kernels::cpu
