#include <ATen/ops/empty.h>

#include <algorithm>

#include "coppice/kernels/cpu/small_products_detail.h"
#include "coppice/kernels/elementwise_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kTokensPerTask = 128, kWeightRowsPerTask = 16;

/// a b; of f32 in lanes, so many rows in a task.
at::Tensor multiplied(const at::Tensor& a, const at::Tensor& b, int64_t rows_per_task) {
  if (widens(a.scalar_type())) return product_in_f32(a, b).to(a.scalar_type());
  const auto out = at::empty({a.size(0), b.size(1)}, a.options());
  auto* const to = out.mutable_data_ptr<float>();
  const auto multiply = lanes_of(this_processor()).multiply;
  const Matrix left = Matrix::of(a), right = Matrix::of(b);
  parallel_ranges(left.rows, rows_per_task, [&](int64_t begin, int64_t end) {
    multiply(left.rows_from(begin, end - begin), right, to + begin * right.cols, right.cols, /*add=*/false);
  });
  return out;
}

}  // namespace

bool has_linear_for(const at::Tensor& x_TD, const at::Tensor& w_ND) {
  const auto dtype = x_TD.scalar_type();
  const auto is_narrow = [&](int64_t size) { return is_small_product(size, size, dtype); };
  const bool fits_lanes = x_TD.is_contiguous() && w_ND.is_contiguous() && x_TD.size(0) > 0 && is_narrow(w_ND.size(0)) &&
                          is_narrow(w_ND.size(1));
  return x_TD.dim() == 2 && w_ND.scalar_type() == dtype && (fits_lanes || widens(dtype));
}

at::Tensor linear_forward(const at::Tensor& x_TD, const at::Tensor& w_ND) {
  return multiplied(x_TD, w_ND.t(), kTokensPerTask);
}

at::Tensor linear_grad_x(const at::Tensor& grad_TN, const at::Tensor& w_ND) {
  return multiplied(grad_TN, w_ND, kTokensPerTask);
}

at::Tensor linear_grad_w(const at::Tensor& grad_TN, const at::Tensor& x_TD) {
  return multiplied(grad_TN.t(), x_TD, kWeightRowsPerTask);
}

}  // namespace coppice::kernels::cpu
