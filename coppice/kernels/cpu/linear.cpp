#include <ATen/ops/empty.h>

#include <algorithm>

#include "coppice/kernels/cpu/small_products_detail.h"
#include "coppice/kernels/elementwise_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kTokensPerTask = 128, kWeightRowsPerTask = 16;

/// a b in blocks of so many rows, a task each.
at::Tensor product(const Matrix& a, const Matrix& b, int64_t rows_per_task, const at::TensorOptions& options) {
  const auto out = at::empty({a.rows, b.cols}, options);
  auto* const to = out.mutable_data_ptr<float>();
  const auto multiply = lanes_of(this_processor()).multiply;
  parallel_ranges(a.rows, rows_per_task, [&](int64_t begin, int64_t end) {
    multiply(a.rows_from(begin, end - begin), b, to + begin * b.cols, b.cols, /*add=*/false);
  });
  return out;
}

}  // namespace

bool has_linear_for(const at::Tensor& x_TD, const at::Tensor& w_ND) {
  const auto is_narrow = [&](int64_t size) { return is_small_product(size, size, x_TD.scalar_type()); };
  return x_TD.dim() == 2 && w_ND.scalar_type() == x_TD.scalar_type() && x_TD.is_contiguous() && w_ND.is_contiguous() &&
         x_TD.size(0) > 0 && is_narrow(w_ND.size(0)) && is_narrow(w_ND.size(1));
}

at::Tensor linear_forward(const at::Tensor& x_TD, const at::Tensor& w_ND) {
  return product(Matrix::of(x_TD), Matrix::of(w_ND).t(), kTokensPerTask, x_TD.options());
}

at::Tensor linear_grad_x(const at::Tensor& grad_TN, const at::Tensor& w_ND) {
  return product(Matrix::of(grad_TN), Matrix::of(w_ND), kTokensPerTask, grad_TN.options());
}

at::Tensor linear_grad_w(const at::Tensor& grad_TN, const at::Tensor& x_TD) {
  return product(Matrix::of(grad_TN).t(), Matrix::of(x_TD), kWeightRowsPerTask, x_TD.options());
}

}  // namespace coppice::kernels::cpu
