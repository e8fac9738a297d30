#include <ATen/ops/mm.h>

#include "coppice/kernels/cpu/small_products_detail.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kWidest = 128;

}  // namespace

bool is_small_product(int64_t inner, int64_t cols, at::ScalarType dtype) {
  return dtype == at::kFloat && cols % kNarrowLanes == 0 && cols > 0 && cols <= kWidest && inner > 0;
}

void multiply_into(at::Tensor out, const at::Tensor& a, const at::Tensor& b) {
  const bool in_lines = out.stride(1) == 1 && (b.stride(0) == 1 || b.stride(1) == 1) && a.stride(1) <= kWidest;
  if (in_lines && is_small_product(a.size(1), b.size(1), a.scalar_type())) {
    const auto multiply = lanes_of(this_processor()).multiply;
    multiply(Matrix::of(a), Matrix::of(b), out.mutable_data_ptr<float>(), out.stride(0), /*add=*/false);
  } else {
    at::mm_out(out, a, b);
  }
}

}  // namespace coppice::kernels::cpu
