#include "coppice/kernels/rope.h"

#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "coppice/base/check.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels {
namespace {

using detail::load;
using detail::store;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// `direction` 1 rotates, -1 rotates back, which is also the gradient.
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

at::Tensor turn(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, float direction) {
  const int64_t heads = x.size(2), width = x.size(3), angles = cos.size(0), half = cos.size(1);
  const auto out = at::empty_like(x);
  detail::with_scalar(x, [&]<class T>(T) {
    const auto* from = x.const_data_ptr<T>();
    auto* to = out.mutable_data_ptr<T>();
    const auto *c = cos.const_data_ptr<float>(), *s = sin.const_data_ptr<float>();
    const int64_t grain = std::max<int64_t>(1, (1 << 15) / (heads * width));
    parallel_ranges(x.size(0) * x.size(1), grain, [=](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        const int64_t angle = (token % angles) * half;
        for (int64_t head = 0; head < heads; ++head) {
          const int64_t at = (token * heads + head) * width;
          turn_head(from + at, c + angle, s + angle, direction, to + at, half, width);
        }
      }
    });
  });
  return out;
}

struct Rope : torch::autograd::Function<Rope> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return turn(x.contiguous(), cos, sin, 1.0f);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {turn(grads[0].contiguous(), saved[0], saved[1], -1.0f), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  COPPICE_CHECK(x.dim() == 4 && cos.sizes() == sin.sizes() && 2 * cos.size(1) <= x.size(3));
  COPPICE_CHECK(cos.size(0) == x.size(1) || cos.size(0) == x.size(0) * x.size(1));
  COPPICE_CHECK(cos.is_contiguous() && sin.is_contiguous());
  return Rope::apply(x, cos, sin);
}

}  // namespace coppice::kernels
