#include "coppice/kernels/embedding.h"

#include <torch/csrc/autograd/custom_function.h>

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/embedding_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Embed : torch::autograd::Function<Embed> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& table_VD, const at::Tensor& ids_T) {
    ctx->save_for_backward({ids_T});
    ctx->saved_data["rows"] = table_VD.size(0);
    ctx->saved_data["dtype"] = static_cast<int64_t>(table_VD.scalar_type());
    const auto rows_TD = table_VD.index_select(0, ids_T);
    return rows_TD.scalar_type() == at::kDouble ? rows_TD : rows_TD.to(at::kFloat);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto backward = detail::pick(grads[0], cpu::embed_backward, aten::embed_backward);
    return {backward(grads[0].contiguous(), ctx->get_saved_variables()[0], ctx->saved_data["rows"].toInt(),
                     static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt())),
            at::Tensor()};
  }
};

}  // namespace

at::Tensor embed(const at::Tensor& table_VD, const at::Tensor& ids_T) {
  COPPICE_CHECK(table_VD.dim() == 2 && ids_T.dim() == 1 && ids_T.scalar_type() == at::kLong);
  return Embed::apply(table_VD, ids_T.contiguous());
}

}  // namespace coppice::kernels
