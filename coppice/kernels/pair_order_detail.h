#pragma once

// The order in which the variants of the MoE layer compute. No ATen here: nvcc compiles it too.

#include <cstdint>

namespace coppice::kernels::detail {

/// The (token, slot) pairs of one MoE layer as rows: expert by expert, and in rising order of pairs for each expert. T
/// tokens, K experts per token, E experts, P rows.
struct PairOrder {
  int64_t tokens = 0, top_k = 0, experts = 0;
  int64_t rows = 0;                ///< P; rows after those of the last expert are unused
  const int64_t* index = nullptr;  ///< [T * K]; expert of each pair
  int32_t* first_row = nullptr;    ///< [E + 1]; each expert's rows, padding included
  int32_t* pair_of_row = nullptr;  ///< [P]; token * K + slot, or -1 for a row of padding
  int32_t* row_of_pair = nullptr;  ///< [T * K]

  int64_t pairs() const { return tokens * top_k; }
  int64_t rows_of(int64_t expert) const { return first_row[expert + 1] - first_row[expert]; }
};

}  // namespace coppice::kernels::detail
