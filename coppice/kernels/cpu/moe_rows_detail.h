#pragma once

// Code that the CPU variants of the MoE layer share: tasks, and sums of tokens over the rows of their experts.

#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "coppice/base/lane_sum.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/kept_order_detail.h"
#include "coppice/kernels/moe_detail.h"
#include "coppice/kernels/pair_order_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {

using detail::PairOrder;

/// The order on the CPU by a counting sort: integers only, so the same for any number of threads.
///
/// `filled_up` says how many rows an expert of so many pairs gets; the last ones are padding.
/// Throws   Error{kInternal} for an index that is no expert.
detail::KeptOrder order_pairs(const detail::MoeInputs& in, const std::function<int64_t(int64_t rows)>& filled_up);

/// The three ways to compute the layer; a backward pass understands the hidden_PG of its own forward pass.
extern const detail::MoeVariant kExpertsByGemms, kExpertsByWords, kExpertsByTiles;

/// Rows of one expert for one task.
struct Tile {
  int64_t expert, row, rows;
};

/// Divides every expert's rows into tiles of at most `most` rows.
inline std::vector<Tile> cut_tiles(const PairOrder& order, int64_t most) {
  std::vector<Tile> tiles;
  for (int64_t e = 0; e < order.experts; ++e) {
    for (int64_t row = order.first_row[e]; row < order.first_row[e + 1]; row += most) {
      tiles.push_back({e, row, std::min(most, order.first_row[e + 1] - row)});
    }
  }
  return tiles;
}

template <class T>
COPPICE_FOR_AVX512_TOO void add_row(float* __restrict sum, const T* __restrict row, float weight, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) sum[d] += weight * load(row[d]);
}

/// out_t = sum over k of weight_tk * row_tk, in the order of k; weights of 1 if `weight_TK` is null.
template <class T>
void combine(const PairOrder& order, const T* rows_PD, const float* weight_TK, T* out_TD, int64_t tokens, int64_t dim) {
  constexpr int64_t kCombineTokens = 64;
  parallel_ranges(tokens, kCombineTokens, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(dim);
    for (int64_t t = begin; t < end; ++t) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t pair = t * order.top_k; pair < (t + 1) * order.top_k; ++pair) {
        add_row(sum.data(), rows_PD + order.row_of_pair[pair] * dim, weight_TK ? weight_TK[pair] : 1.0f, dim);
      }
      for (int64_t d = 0; d < dim; ++d) store(out_TD[t * dim + d], sum[d]);
    }
  });
}

/// The squared norm of each pair's row.
template <class T>
at::Tensor pair_squares(const PairOrder& order, const T* rows_PD, const at::Tensor& gate_TK, int64_t dim) {
  constexpr int64_t kPairs = 256;
  auto out_TK = at::empty_like(gate_TK);
  auto* const out = out_TK.mutable_data_ptr<float>();
  parallel_ranges(out_TK.numel(), kPairs, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const T* const row = rows_PD + order.row_of_pair[pair] * dim;
      out[pair] = lane_sum<float>(dim, [&](int64_t d) { return load(row[d]) * load(row[d]); });
    }
  });
  return out_TK;
}

}  // namespace coppice::kernels::cpu
