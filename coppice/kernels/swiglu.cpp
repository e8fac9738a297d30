#include "coppice/kernels/swiglu.h"

#include <torch/csrc/autograd/custom_function.h>

#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/elementwise_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Swiglu : torch::autograd::Function<Swiglu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_in, const at::Tensor& up_in) {
    const auto gate = gate_in.contiguous(), up = up_in.contiguous();
    ctx->save_for_backward({gate, up});
    return detail::pick(gate, cpu::swiglu_forward, aten::swiglu_forward)(gate, up);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto backward = detail::pick(saved[0], cpu::swiglu_backward, aten::swiglu_backward);
    const auto grad = backward(saved[0], saved[1], grads[0].contiguous());
    return {grad.gate, grad.up};
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) { return Swiglu::apply(gate, up); }

}  // namespace coppice::kernels
