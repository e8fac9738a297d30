#include "coppice/kernels/swiglu.h"

#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrain = 1 << 14;

struct Swiglu : torch::autograd::Function<Swiglu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_in, const at::Tensor& up_in) {
    const auto gate = gate_in.contiguous(), up = up_in.contiguous();
    ctx->save_for_backward({gate, up});
    const auto out = at::empty_like(gate);
    detail::with_scalar(gate, [&]<class T>(T) {
      const auto *g = gate.const_data_ptr<T>(), *u = up.const_data_ptr<T>();
      auto* a = out.mutable_data_ptr<T>();
      parallel_ranges(gate.numel(), kGrain, [=](int64_t begin, int64_t end) {
        detail::swiglu_row(g + begin, u + begin, a + begin, end - begin);
      });
    });
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &gate = saved[0], &up = saved[1];
    const auto grad = grads[0].contiguous();
    const auto grad_gate = at::empty_like(gate), grad_up = at::empty_like(up);
    detail::with_scalar(gate, [&]<class T>(T) {
      const auto *g = gate.const_data_ptr<T>(), *u = up.const_data_ptr<T>(), *d = grad.const_data_ptr<T>();
      auto *dg = grad_gate.mutable_data_ptr<T>(), *du = grad_up.mutable_data_ptr<T>();
      parallel_ranges(gate.numel(), kGrain, [=](int64_t begin, int64_t end) {
        detail::swiglu_backward_row(g + begin, u + begin, d + begin, dg + begin, du + begin, end - begin);
      });
    });
    return {grad_gate, grad_up};
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) { return Swiglu::apply(gate, up); }

}  // namespace coppice::kernels
