#pragma once

// Checks that values are finite before and after computing. Values that are only copied keep their bytes, whatever they
// are.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "coppice/io/dtype.h"
#include "coppice/matrix/matrix_rows.h"

namespace coppice::matrix {

/// `matrix` with the name `subject`; reading NaN or infinity is an error.
///
/// Throws   Error{kNonFinite} from `read`, naming subject, row and column.
MatrixRows only_finite(MatrixRows matrix, std::string subject);

/// Checks that the values of a matrix with `cols` columns are finite.
///
/// Throws   Error{kNonFinite} naming subject, row (the first is `first_row`) and column.
void check_finite(std::span<const float> values, int64_t first_row, int64_t cols, std::string_view subject);

/// Rounds once to nearest even, as io::from_f32.
///
/// Throws   Error{kNonFinite} naming the subject: a value is NaN or infinite, or too large for `dtype`.
void round_finite(io::Dtype dtype, std::span<const float> values, std::span<std::byte> out, std::string_view subject);

}  // namespace coppice::matrix
