#pragma once

// The places of one expert's matrices in a stored tensor, for any layout.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "coppice/families/match.h"

namespace coppice::models {

/// One matrix of one expert, [rows, cols] = [out, in] (a bias: one column), among the elements of the tensor that are
/// this expert's: (row, col) is element begin + row * row_step + col * col_step.
struct ExpertMatrix {
  families::Role role;
  int64_t rows = 0, cols = 0;
  int64_t begin = 0, row_step = 0, col_step = 0;

  bool is_contiguous() const { return col_step == 1 && row_step == cols; }
  /// Whether its rows are rows of the tensor (perhaps every second one): row r is row first_row() + r * row_stride().
  bool lies_in_rows() const { return col_step == 1 && cols > 0; }
  int64_t first_row() const { return begin / cols; }
  int64_t row_stride() const { return row_step / cols; }
};

/// The matrices in a tensor of experts; empty if it is always copied (companions, experts inside attention).
std::vector<ExpertMatrix> expert_matrices(const families::TensorSlot& slot, int64_t num_experts);

/// Copies a matrix from an expert's elements to [out, in] order, and back.
///
/// Shapes   expert: as many elements of `width` bytes as the expert has in the tensor; matrix: rows * cols of them.
void gather(const ExpertMatrix& place, size_t width, std::span<const std::byte> expert, std::span<std::byte> matrix);
void scatter(const ExpertMatrix& place, size_t width, std::span<const std::byte> matrix, std::span<std::byte> expert);

/// The bytes of one expert in a stored tensor: a window of the file.
struct ExpertSlice {
  uint64_t offset = 0, bytes = 0;  ///< offset from the start of the tensor
};
/// Shapes   the tensor's bytes divide by `num_experts` if it is stacked; otherwise the whole tensor belongs to the
///          expert.
ExpertSlice expert_slice(const families::TensorSlot& slot, uint64_t tensor_bytes, int64_t num_experts, int64_t expert);

}  // namespace coppice::models
