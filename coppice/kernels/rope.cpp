#include "coppice/kernels/rope.h"

#include <torch/csrc/autograd/custom_function.h>

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/elementwise_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Rope : torch::autograd::Function<Rope> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return detail::pick(x, cpu::rope, aten::rope)(x.contiguous(), cos, sin, 1);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto turn = detail::pick(grads[0], cpu::rope, aten::rope);
    return {turn(grads[0].contiguous(), saved[0], saved[1], -1), at::Tensor(), at::Tensor()};
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
