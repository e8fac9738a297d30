#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "coppice/cost/memory.h"
#include "coppice/cost/traffic.h"

namespace coppice::cost {

/// An accelerator with the numbers of its data sheet.
struct Device {
  std::string_view name;
  double flops_per_s = 0;    ///< bf16 with fp32 sums, dense
  double memory_per_s = 0;   ///< bytes of device memory per second
  double network_per_s = 0;  ///< bytes per second, one direction, to its neighbours
  double memory_bytes = 0;
  std::string_view source;
  double tile_rows = 128;  ///< matrix products of an expert's rows are done in tiles of so many; 0: no padding
};
const Device& device(std::string_view name);  // Throws Error{kUsage}

struct StepWork {
  double batch_tokens = 0;  ///< tokens per optimizer step, over all ranks
  double sequence_length = 0;
  double utilisation = 0;      ///< share of flops_per_s that matrix products reach
  bool recompute = false;      ///< the backward pass computes each layer again
  double micro_tokens = 0;     ///< tokens of a rank's micro-batch (simulated steps); 0: all of its tokens
  bool once_per_rank = false;  ///< a token goes once to a rank with several of its experts (simulated steps)
};

/// Micro-batches of a rank's `tokens`.
double micro_batches(const StepWork& work, double tokens);

/// The exchange of rows in such steps, for a rank that sees `tokens`. Activations have the dtype of the weights.
Exchange exchange_of(const StateBytes& bytes, const StepWork& work, double tokens);

/// The parts of a step's time, without overlap.
struct StepEstimate {
  double compute_s = 0, optimizer_s = 0, all_to_all_s = 0, reduce_s = 0;
  double total_s() const { return compute_s + optimizer_s + all_to_all_s + reduce_s; }
};
/// Estimates a step from FLOPs and bytes only. It ignores slower kernels for many small experts, activations and
/// overlap, so use it to compare E with N, not to plan a cluster.
///
/// Source   6 FLOPs per token and active parameter outside the input embedding, causal attention 6 S H per layer
///          (arXiv:2001.08361 section 2.1); AdamW reads and writes its state once; gradients and values as in traffic.h.
StepEstimate estimate_step(const ModelSize& size, const Device& device, const Parallelism& parallelism,
                           const StateBytes& bytes, const StepWork& work);

/// FLOPs of the forward and backward pass of one token.
double flops_per_token(const ModelSize& size, double sequence_length, bool recompute = false);

/// Whether the input embedding and the head are one matrix.
bool is_tied(const ModelSize& size);

/// Seconds of AdamW over the state that one rank updates.
double optimizer_seconds(const ModelSize& size, const Device& device, const Parallelism& parallelism,
                         const StateBytes& bytes);

/// Step time as a linear function of the number of experts: the work per token is constant, and the bytes of weights
/// and optimizer state grow.
struct StepLine {
  double at_zero_s = 0, per_expert_s = 0;
  double at(int64_t experts) const { return at_zero_s + per_expert_s * static_cast<double>(experts); }
};
/// The least-squares line through (experts, seconds); needs two or more different numbers of experts.
StepLine fit_step_line(const std::vector<std::pair<int64_t, double>>& measured);

}  // namespace coppice::cost
