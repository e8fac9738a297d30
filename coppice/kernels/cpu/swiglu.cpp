#include <ATen/ops/empty_like.h>

#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/elementwise_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;

}  // namespace

at::Tensor swiglu_forward(const at::Tensor& gate, const at::Tensor& up) {
  const auto out = at::empty_like(gate);
  with_scalar(gate, [&]<class T>(T) {
    const auto *g = gate.const_data_ptr<T>(), *u = up.const_data_ptr<T>();
    auto* a = out.mutable_data_ptr<T>();
    parallel_ranges(gate.numel(), kGrain,
                    [=](int64_t begin, int64_t end) { swiglu_row(g + begin, u + begin, a + begin, end - begin); });
  });
  return out;
}

detail::SwigluGradients swiglu_backward(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& grad) {
  const detail::SwigluGradients gradients{at::empty_like(gate), at::empty_like(up)};
  with_scalar(gate, [&]<class T>(T) {
    const auto *g = gate.const_data_ptr<T>(), *u = up.const_data_ptr<T>(), *d = grad.const_data_ptr<T>();
    auto *dg = gradients.gate.mutable_data_ptr<T>(), *du = gradients.up.mutable_data_ptr<T>();
    parallel_ranges(gate.numel(), kGrain, [=](int64_t begin, int64_t end) {
      swiglu_backward_row(g + begin, u + begin, d + begin, dg + begin, du + begin, end - begin);
    });
  });
  return gradients;
}

}  // namespace coppice::kernels::cpu
