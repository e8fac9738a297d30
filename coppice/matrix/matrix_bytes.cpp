#include "coppice/matrix/matrix_bytes.h"

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/matrix/finite.h"

namespace coppice::matrix {
namespace {

void check_is_float(io::Dtype dtype, std::string_view what) {
  if (io::is_float(dtype)) return;
  throw Error(ErrorCode::kUnsupported, cat(what, ": coppice cannot compute with values of type ", io::dtype_name(dtype),
                                           " (choose the method 'copy')"));
}

}  // namespace

std::vector<float> widened(const MatrixBytes& matrix, std::string_view what) {
  check_is_float(matrix.dtype, what);
  std::vector<float> values(static_cast<size_t>(matrix.rows * matrix.cols));
  COPPICE_CHECK(matrix.bytes.size() == values.size() * io::dtype_bytes(matrix.dtype));
  io::to_f32(matrix.dtype, matrix.bytes, values);
  return values;
}

MatrixRows rows_of(const MatrixBytes& matrix, families::Role role) {
  check_is_float(matrix.dtype, families::role_name(role));
  const size_t row_bytes = static_cast<size_t>(matrix.cols) * static_cast<size_t>(io::dtype_bits(matrix.dtype)) / 8;
  const auto read = [matrix, row_bytes](int64_t first, std::span<float> out) {
    const size_t count = out.size() / static_cast<size_t>(matrix.cols);
    io::to_f32(matrix.dtype, matrix.bytes.subspan(static_cast<size_t>(first) * row_bytes, count * row_bytes), out);
  };
  return {role, matrix.rows, matrix.cols, read};
}

void round_rows(const MatrixRows& matrix, io::Dtype dtype, std::span<std::byte> out) {
  const size_t width = io::dtype_bytes(dtype);
  COPPICE_CHECK(out.size() == static_cast<size_t>(matrix.rows * matrix.cols) * width);
  matrix.for_each_block([&](int64_t first, std::span<const float> rows) {
    round_finite(dtype, rows, out.subspan(static_cast<size_t>(first * matrix.cols) * width, rows.size() * width),
                 matrix.subject);
  });
}

}  // namespace coppice::matrix
