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

/// The heads of the tokens [begin, end).
template <class T>
struct Turn {
  const T* x;
  const float *cos, *sin;
  float direction;
  T* out;
  int64_t heads, width, angles, half;

  COPPICE_FOR_AVX512_TOO void run(int64_t begin, int64_t end) const {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t angle = (token % angles) * half;
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t at = (token * heads + head) * width;
        turn_head(x + at, cos + angle, sin + angle, direction, out + at, half, width);
      }
    }
  }
};

}  // namespace

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, double direction) {
  const int64_t heads = x.size(2), width = x.size(3), angles = cos.size(0), half = cos.size(1);
  const auto sign = static_cast<float>(direction);
  const auto out = at::empty_like(x);
  with_scalar(x, [&]<class T>(T) {
    const Turn<T> turn{x.const_data_ptr<T>(),
                       cos.const_data_ptr<float>(),
                       sin.const_data_ptr<float>(),
                       sign,
                       out.mutable_data_ptr<T>(),
                       heads,
                       width,
                       angles,
                       half};
    const int64_t grain = std::max<int64_t>(1, (1 << 15) / (heads * width));
    parallel_ranges(x.size(0) * x.size(1), grain, [=](int64_t begin, int64_t end) { turn.run(begin, end); });
  });
  return out;
}

}  // namespace coppice::kernels::cpu
