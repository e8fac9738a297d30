#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace coppice::kernels::detail {

/// The (token, slot) pairs of one MoE layer as rows: expert by expert, and in rising order of pairs for each expert.
struct PairOrder {
  int64_t top_k = 0;
  std::vector<int64_t> first_row;    ///< [E + 1]; start of each expert's rows, including padding
  std::vector<int64_t> count;        ///< [E]; number of its pairs
  std::vector<int32_t> pair_of_row;  ///< token * K + slot, or -1 for a row of padding
  std::vector<int32_t> row_of_pair;  ///< [T * K]

  int64_t num_rows() const { return first_row.back(); }
  int64_t num_experts() const { return static_cast<int64_t>(count.size()); }
  int64_t rows(int64_t expert) const { return first_row[expert + 1] - first_row[expert]; }
};

/// A counting sort; it uses only integers, so the result does not depend on threads.
///
/// `filled_up` gives the number of rows of an expert with that many pairs; the last rows are padding.
/// Throws   Error{kInternal} for an index outside [0, num_experts).
PairOrder order_pairs(const at::Tensor& index_TK, int64_t num_experts,
                      const std::function<int64_t(int64_t rows)>& filled_up);

}  // namespace coppice::kernels::detail
