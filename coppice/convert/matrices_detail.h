#pragma once

// Matrices that a conversion makes or reads, by rows.

#include <vector>

#include "coppice/io/checkpoint.h"
#include "coppice/matrix/matrix_rows.h"
#include "coppice/models/expert_layout.h"

namespace coppice::convert::detail {

/// A whole tensor as a matrix [first dimension, the others].
models::ExpertMatrix whole(families::Role role, const io::TensorShape& shape);

/// Slice `index` of `count` of a dense layer's matrix, as the matrix `role` of an expert: rows of gate and up, columns
/// of down.
models::ExpertMatrix slice_place(families::Role role, const io::TensorShape& shape, int64_t index, int64_t count);

matrix::MatrixRows constant(const models::ExpertMatrix& place, float value);

/// The average of matrices of one shape, summed in fp64 in their order.
matrix::MatrixRows average(std::vector<matrix::MatrixRows> matrices);

/// Throws   Error{kUnsupported} naming the tensor if its values cannot be computed on.
void check_float(const io::Checkpoint::Entry& entry);

}  // namespace coppice::convert::detail
