#include "coppice/matrix/finite.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::matrix {
namespace {

/// The bits of the smallest |x| that does not round to a finite number; NaN has larger bits.
uint32_t first_too_large(io::Dtype dtype) {
  switch (dtype) {
    case io::Dtype::kBf16: return 0x7f7f8000u;  // half a step above the largest bf16
    case io::Dtype::kF16: return 0x477ff000u;   // 65520
    default: return 0x7f800000u;
  }
}

/// The index of the first value that is not below `limit`; values.size() if there is none.
size_t find_too_large(std::span<const float> values, uint32_t limit) {
  bool any = false;
  for (const float x : values) any |= (std::bit_cast<uint32_t>(x) & 0x7fffffffu) >= limit;
  if (!any) return values.size();
  const auto is_too_large = [limit](float x) { return (std::bit_cast<uint32_t>(x) & 0x7fffffffu) >= limit; };
  return static_cast<size_t>(std::ranges::find_if(values, is_too_large) - values.begin());
}

}  // namespace

void check_finite(std::span<const float> values, int64_t first_row, int64_t cols, std::string_view subject) {
  const size_t at = find_too_large(values, first_too_large(io::Dtype::kF32));
  if (at == values.size()) return;
  const auto place = static_cast<int64_t>(at);
  throw Error(ErrorCode::kNonFinite,
              cat(subject, ": ", values[at], " at row ", first_row + place / cols, ", column ", place % cols,
                  "; wanted finite values (the checkpoint is damaged, or its training diverged)"));
}

MatrixRows only_finite(MatrixRows matrix, std::string subject) {
  matrix.read = [read = std::move(matrix.read), cols = matrix.cols, subject](int64_t first, std::span<float> out) {
    read(first, out);
    check_finite(out, first, cols, subject);
  };
  matrix.subject = std::move(subject);
  return matrix;
}

void round_finite(io::Dtype dtype, std::span<const float> values, std::span<std::byte> out, std::string_view subject) {
  const size_t at = find_too_large(values, first_too_large(dtype));
  if (at == values.size()) return io::from_f32(dtype, values, out);
  const std::string_view why = std::isfinite(values[at]) ? "; it is too large for " : "; wanted a finite number in ";
  throw Error(ErrorCode::kNonFinite, cat(subject, ": a computed value is ", values[at], why, io::dtype_name(dtype),
                                         " (make the method's parameters smaller)"));
}

}  // namespace coppice::matrix
