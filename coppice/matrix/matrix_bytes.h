#pragma once

// A matrix in memory, in any dtype.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/families/family.h"
#include "coppice/io/dtype.h"
#include "coppice/matrix/matrix_rows.h"

namespace coppice::matrix {

/// A matrix as stored: dtype, [rows, cols], contiguous.
struct MatrixBytes {
  io::Dtype dtype = io::Dtype::kF32;
  int64_t rows = 0, cols = 0;
  std::span<const std::byte> bytes;
};
/// The matrix's rows in fp32; `matrix` must outlive them. Throws Error{kUnsupported} for a dtype that does not allow
/// computing.
MatrixRows rows_of(const MatrixBytes& matrix, families::Role role);
/// All rows, rounded to `dtype`.
///
/// Shapes   out: rows * cols elements of `dtype`.
void round_rows(const MatrixRows& matrix, io::Dtype dtype, std::span<std::byte> out);
/// Its values, [rows, cols]. Throws as rows_of, naming `what`.
std::vector<float> widened(const MatrixBytes& matrix, std::string_view what);
/// Fetches the same tensor of another original expert.
using MatrixSource = std::function<MatrixBytes(uint32_t expert)>;

}  // namespace coppice::matrix
