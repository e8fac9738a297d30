#include "coppice/kernels/embedding.h"

#include <torch/csrc/autograd/custom_function.h>

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/embedding_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor table_gradient(const at::Tensor& grad_TD, const at::Tensor& ids_T, int64_t rows, at::ScalarType dtype) {
  const auto backward = detail::pick(grad_TD, cpu::embed_backward, aten::embed_backward);
  return backward(grad_TD.contiguous(), ids_T, rows, dtype);
}

struct Embed : torch::autograd::Function<Embed> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& table_VD, const at::Tensor& ids_T) {
    ctx->save_for_backward({ids_T});
    ctx->saved_data["rows"] = table_VD.size(0);
    ctx->saved_data["dtype"] = static_cast<int64_t>(table_VD.scalar_type());
    const auto rows_TD = table_VD.index_select(0, ids_T);
    return rows_TD.scalar_type() == at::kDouble ? rows_TD : rows_TD.to(at::kFloat);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {table_gradient(grads[0], ctx->get_saved_variables()[0], ctx->saved_data["rows"].toInt(),
                           static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt())),
            at::Tensor()};
  }
};

}  // namespace

at::Tensor embed(const at::Tensor& table_VD, const at::Tensor& ids_T) {
  COPPICE_CHECK(table_VD.dim() == 2 && ids_T.dim() == 1 && ids_T.scalar_type() == at::kLong);
  return Embed::apply(table_VD, ids_T.contiguous());
}

at::Tensor sum_rows(const at::Tensor& x_TD, const at::Tensor& ids_T, int64_t rows) {
  COPPICE_CHECK(x_TD.dim() == 2 && x_TD.scalar_type() == at::kFloat && ids_T.sizes() == x_TD.sizes().slice(0, 1));
  return table_gradient(x_TD, ids_T.contiguous(), rows, at::kFloat);
}

}  // namespace coppice::kernels
