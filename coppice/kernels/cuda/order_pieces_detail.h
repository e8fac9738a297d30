#pragma once

// The pieces of the sort.

#include "coppice/base/check.h"
#include "coppice/io/dtype.h"
#include "coppice/kernels/cuda/sorted_rows_detail.h"

namespace coppice::kernels::cuda {

struct NoPairs {
  PairOrder order;
  COPPICE_ANYWHERE void operator()(int64_t row) const { order.pair_of_row[row] = -1; }
};

/// An expert index out of range is our bug: on a GPU the kernel is aborted.
COPPICE_ANYWHERE inline void check_expert(int64_t expert, int64_t experts) {
#ifdef __CUDA_ARCH__
  if (expert < 0 || expert >= experts) __trap();
#else
  COPPICE_CHECK(expert >= 0 && expert < experts, "expert ", expert);
#endif
}

/// The pairs of a chunk in which a piece looks for those of one expert: piece chunk * E + expert.
struct ExpertInChunk {
  int64_t expert, begin, end;

  COPPICE_ANYWHERE ExpertInChunk(const PairOrder& order, int64_t piece)
      : expert(piece % order.experts), begin(piece / order.experts * kChunkPairs), end(begin + kChunkPairs) {
    const int64_t pairs = order.tokens * order.top_k;
    if (end > pairs) end = pairs;
  }
};

/// Counts the pairs of one expert in one chunk.
struct CountPairs {
  PairOrder order;
  int32_t* chunk_count;
  COPPICE_ANYWHERE void operator()(int64_t piece) const {
    const ExpertInChunk of(order, piece);
    int32_t count = 0;
    for (int64_t pair = of.begin; pair < of.end; ++pair) {
      if (of.expert == 0) check_expert(order.index[pair], order.experts);
      count += order.index[pair] == of.expert ? 1 : 0;
    }
    chunk_count[piece] = count;
  }
};

/// For one expert: replaces counts by the number of pairs in earlier chunks; the last row of `chunk_count` gets the
/// number of all its pairs.
struct SumChunks {
  PairOrder order;
  int32_t* chunk_count;
  int64_t chunks;
  COPPICE_ANYWHERE void operator()(int64_t expert) const {
    int32_t sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int32_t count = chunk_count[chunk * order.experts + expert];
      chunk_count[chunk * order.experts + expert] = sum;
      sum += count;
    }
    chunk_count[chunks * order.experts + expert] = sum;
  }
};

/// The first row of one expert, or the end of the last one's: after the rows of all before it, of which `count` has the
/// pairs. No expert waits for another; the sum is of numbers that neighbours read too.
struct PlaceExperts {
  PairOrder order;
  const int32_t* count;
  COPPICE_ANYWHERE void operator()(int64_t expert) const {
    constexpr auto kQuantum = static_cast<int32_t>(kRowQuantum);
    int32_t row = 0;
    for (int64_t before = 0; before < expert; ++before) {
      row += count[before] == 0 ? kQuantum : (count[before] + kQuantum - 1) / kQuantum * kQuantum;
    }
    order.first_row[expert] = row;
  }
};

/// Gives a row to each pair of one expert in one chunk.
struct PlacePairs {
  PairOrder order;
  int32_t* chunk_count;
  COPPICE_ANYWHERE void operator()(int64_t piece) const {
    const ExpertInChunk of(order, piece);
    int32_t row = order.first_row[of.expert] + chunk_count[piece];
    for (int64_t pair = of.begin; pair < of.end; ++pair) {
      if (order.index[pair] != of.expert) continue;
      order.pair_of_row[row] = static_cast<int32_t>(pair);
      order.row_of_pair[pair] = row++;
    }
  }
};

}  // namespace coppice::kernels::cuda
