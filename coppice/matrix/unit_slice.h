#pragma once

#include <cstdint>

#include "coppice/matrix/matrix_rows.h"

namespace coppice::matrix {

/// Slice `index` of `count` of an expert's matrix (or bias) along its units, times a factor: some rows of gate and up,
/// columns of down.
///
/// Throws   Error{kShape} naming the matrix if its units cannot be divided by `count`.
MatrixRows unit_slice(const MatrixRows& whole, int64_t index, int64_t count, double factor);

}  // namespace coppice::matrix
