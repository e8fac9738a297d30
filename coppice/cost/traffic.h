#pragma once

#include <cstdint>
#include <span>

#include "coppice/cost/memory.h"

namespace coppice::cost {

/// Bytes that one rank hands to other ranks in one training step, by collective. The counters of the trainer count the
/// same; small messages (losses, balance counts, the norm of the gradient) are left out.
struct Traffic {
  uint64_t reduce_scatter = 0;  ///< gradients
  uint64_t all_gather = 0;      ///< values after the optimizer's step
  uint64_t all_to_all = 0;      ///< rows of tokens to experts on other ranks, and back
  uint64_t total() const { return reduce_scatter + all_gather + all_to_all; }
};

/// Bytes that a rank sends in a reduce-scatter or an all-gather of flat buckets over `ranks`: (n - 1) / n of each
/// bucket, padded so that every rank's part is a multiple of kShardAlign values.
///
/// Units    `buckets`: values of each bucket; padding that is there already changes nothing.
uint64_t sharded_bytes(std::span<const int64_t> buckets, int64_t ranks, int64_t value_bytes);
inline constexpr int64_t kShardAlign = 64;

/// What the exchange of an MoE layer sends for one row, which is one (token, slot) pair whose expert lies on another
/// rank. A token with two slots on one rank is two rows.
struct RowBytes {
  static constexpr int64_t kGate = 4, kCount = 8;  ///< f32; int64, of rows for one expert

  int64_t model_dim = 0, activation_bytes = 2;
  bool recompute = false;  ///< the backward pass repeats the forward exchange

  int64_t vector() const { return model_dim * activation_bytes; }
  int64_t forwards() const { return recompute ? 2 : 1; }
  /// Sent by the token's rank: the row and its gate; backward, the gradient of the result.
  int64_t of_token() const { return forwards() * (vector() + kGate) + vector(); }
  /// Sent by the expert's rank: the result; backward, the gradients of the row and of the gate.
  int64_t of_expert() const { return forwards() * vector() + vector() + kGate; }
  /// Sent before the rows, whatever their number: how many there are for each expert on another rank.
  int64_t of_counts(int64_t experts_elsewhere) const { return forwards() * experts_elsewhere * kCount; }
};

/// Rows of one exchange that left this rank for experts elsewhere, and rows that came from other ranks.
struct ExchangedRows {
  int64_t left = 0, came = 0;
};

/// Bytes that a rank sends to other ranks for the given exchanges: one for each MoE layer and micro-batch.
/// `experts_elsewhere`: experts of a layer that are on other ranks.
uint64_t exchange_bytes(const RowBytes& row, int64_t experts_elsewhere, std::span<const ExchangedRows> exchanges);

/// Rows that leave a rank in one exchange, and that come to it, if every expert is equally likely.
struct ExpectedRows {
  double left = 0, came = 0;
};
/// Of the rank with the most experts, c of E: tokens K (1 - c / E) leave, tokens K (R - 1) c / E come. Both are
/// tokens K (R - 1) / R if the ranks divide the experts evenly.
ExpectedRows expected_rows(double tokens, const ModelSize& size, const Parallelism& parallelism);

/// Vectors that leave if a token is sent once to each rank that has one of its experts, however many those are; the
/// mean over ranks.
double expected_vectors(double tokens, double top_k, int64_t ranks, int64_t experts);

/// How MoE layers exchange rows.
struct Exchange {
  int64_t activation_bytes = 2;
  bool recompute = false;      ///< as in RowBytes
  bool once_per_rank = false;  ///< vectors as in expected_vectors; the gates of all rows all the same
  double micro_batches = 1;    ///< of a step; each sends counts
};

/// Bytes that a rank sends per token of a training step to experts on other ranks and back, over all MoE layers, with
/// even routing and without counts. 0 without expert parallelism.
double all_to_all_bytes(const ModelSize& size, const Parallelism& parallelism, const Exchange& exchange = {});

/// A training step of one rank, which sees `tokens`: what it is expected to send, without padding. Without ZeRO-1 gradients are
/// all-reduced, and `all_gather` is the second half of that.
Traffic expected_traffic(const ModelSize& size, const Parallelism& parallelism, const StateBytes& bytes, double tokens,
                         const Exchange& exchange);

}  // namespace coppice::cost
