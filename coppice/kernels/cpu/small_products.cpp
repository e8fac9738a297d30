#include <ATen/ops/mm.h>

#include <algorithm>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/kernels/cpu/lanes_detail.h"
#include "coppice/kernels/cpu/small_products_detail.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kLanes = kNarrowLanes;
constexpr int64_t kInner = 256;  // of a panel at a time: 16 KB, half of a level-1 cache
constexpr int64_t kRows = 6;     // whose sums of 16 lanes are 12 of the 16 registers
constexpr int64_t kWidest = 128;

template <bool kAdd>
void multiply_panel(Strided left, int64_t rows, const float* right, int64_t right_step, int64_t inner, float* out,
                    int64_t out_step) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    multiply_rows<kRows, kAdd>(left.from(row), right, right_step, inner, out + row * out_step, out_step);
  }
  [&]<size_t... kLeft>(std::index_sequence<kLeft...>) {
    const auto rest = static_cast<size_t>(rows - row);
    ((rest == kLeft + 1
          ? multiply_rows<kLeft + 1, kAdd>(left.from(row), right, right_step, inner, out + row * out_step, out_step)
          : void()),
     ...);
  }(std::make_index_sequence<kRows - 1>());
}

}  // namespace

bool is_small_product(const Processor& processor, int64_t inner, int64_t cols, at::ScalarType dtype) {
  return !processor.avx512 && dtype == at::kFloat && cols % kLanes == 0 && cols > 0 && cols <= kWidest && inner > 0;
}

void small_product(const Matrix& a, const Matrix& b, float* out, int64_t out_step, bool add) {
  COPPICE_CHECK(a.cols == b.rows && b.cols % kLanes == 0 && (b.col_step == 1 || b.row_step == 1));
  alignas(64) float packed[kInner * kLanes];
  for (int64_t k = 0; k < a.cols; k += kInner) {
    const int64_t inner = std::min(kInner, a.cols - k);
    const Strided left{a.data + k * a.col_step, a.row_step, a.col_step};
    for (int64_t col = 0; col < b.cols; col += kLanes) {
      const float* right = b.data + k * b.row_step + col * b.col_step;
      int64_t right_step = b.row_step;
      if (b.col_step != 1) {
        turn_rows(right, b.col_step, inner, packed);
        right = packed;
        right_step = kLanes;
      }
      const auto multiply = add || k > 0 ? multiply_panel<true> : multiply_panel<false>;
      multiply(left, a.rows, right, right_step, inner, out + col, out_step);
    }
  }
}

void multiply_into(at::Tensor out, const at::Tensor& a, const at::Tensor& b) {
  const bool in_lines = out.stride(1) == 1 && (b.stride(0) == 1 || b.stride(1) == 1) && a.stride(1) <= kWidest;
  if (in_lines && is_small_product(this_processor(), a.size(1), b.size(1), a.scalar_type())) {
    small_product(Matrix::of(a), Matrix::of(b), out.mutable_data_ptr<float>(), out.stride(0));
  } else {
    at::mm_out(out, a, b);
  }
}

}  // namespace coppice::kernels::cpu
