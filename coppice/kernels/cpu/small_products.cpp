#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include "coppice/kernels/cpu/small_products_detail.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kWidest = 128;

template <class T>
at::Tensor tensor_over(const T* data, at::IntArrayRef sizes, at::IntArrayRef strides) {
  return at::from_blob(const_cast<T*>(data), sizes, strides, at::CppTypeToScalarType<T>::value);
}

template <class T>
at::Tensor tensor_over(const MatrixOf<T>& x) {
  return tensor_over(x.data, {x.rows, x.cols}, {x.row_step, x.col_step});
}

}  // namespace

bool is_small_product(int64_t inner, int64_t cols, at::ScalarType dtype) {
  return dtype == at::kFloat && cols % kNarrowLanes == 0 && cols > 0 && cols <= kWidest && inner > 0;
}

bool widens(at::ScalarType dtype) {
  return dtype == at::kBFloat16 && (f32_products_everywhere || !has_fast_bf16(this_processor()));
}

at::Tensor product_in_f32(const at::Tensor& a, const at::Tensor& b) {
  return at::mm(a.to(at::kFloat), b.to(at::kFloat));
}

template <class T>
void multiply_into(T* out, const MatrixOf<T>& a, const MatrixOf<T>& b, const T* bias) {
  if constexpr (std::is_same_v<T, float>) {
    const bool in_lines = (b.row_step == 1 || b.col_step == 1) && a.col_step <= kWidest;
    if (bias == nullptr && in_lines && is_small_product(a.cols, b.cols, at::kFloat)) {
      return lanes_of(this_processor()).multiply(a, b, out, b.cols, /*add=*/false);
    }
  }
  auto to = tensor_over(out, {a.rows, b.cols}, {b.cols, 1});
  if (widens(to.scalar_type())) {
    auto sum = product_in_f32(tensor_over(a), tensor_over(b));
    if (bias != nullptr) sum.add_(tensor_over(bias, {b.cols}, {1}));
    to.copy_(sum);
    return;
  }
  if (bias == nullptr) {
    at::mm_out(to, tensor_over(a), tensor_over(b));
  } else {
    at::addmm_out(to, tensor_over(bias, {b.cols}, {1}), tensor_over(a), tensor_over(b));
  }
}

template void multiply_into(float*, const MatrixOf<float>&, const MatrixOf<float>&, const float*);
template void multiply_into(at::BFloat16*, const MatrixOf<at::BFloat16>&, const MatrixOf<at::BFloat16>&,
                            const at::BFloat16*);

}  // namespace coppice::kernels::cpu
