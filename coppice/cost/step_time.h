#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "coppice/cost/memory.h"

namespace coppice::cost {

/// An accelerator, as its data sheet has it.
struct Device {
  std::string_view name;
  double flops_per_s = 0;    ///< bf16 with fp32 sums, dense
  double memory_per_s = 0;   ///< bytes of device memory a second
  double network_per_s = 0;  ///< bytes a second, one direction, to its neighbours
  double memory_bytes = 0;
  std::string_view source;
};
const Device& device(std::string_view name);  // Throws Error{kUsage}

struct StepWork {
  double batch_tokens = 0;  ///< of one optimizer step, over all ranks
  double sequence_length = 0;
  double utilisation = 0;  ///< share of flops_per_s that matrix products reach
};

/// A step taken apart; nothing overlaps.
struct StepEstimate {
  double compute_s = 0, optimizer_s = 0, all_to_all_s = 0, reduce_s = 0;
  double total_s() const { return compute_s + optimizer_s + all_to_all_s + reduce_s; }
};
/// What arithmetic and bytes alone would take. Knows nothing of kernels that lose speed on many small experts, of
/// activations or of overlap: to compare E with N, not to plan a cluster by.
///
/// Source   6 FLOPs a token and active parameter outside the input embedding, causal attention 6 S H a layer
///          (arXiv:2001.08361 section 2.1); AdamW reads and writes its state once; ring all-reduce 2 (n-1)/n.
StepEstimate estimate_step(const ModelSize& size, const Device& device, const Parallelism& parallelism,
                           const StateBytes& bytes, const StepWork& work);

/// Forward and backward of one token.
double flops_per_token(const ModelSize& size, double sequence_length);

/// Step time as a line in the number of experts: work per token stays, bytes of weights and optimizer state grow.
struct StepLine {
  double at_zero_s = 0, per_expert_s = 0;
  double at(int64_t experts) const { return at_zero_s + per_expert_s * static_cast<double>(experts); }
};
/// Least squares through (experts, seconds); two points or more with different numbers of experts.
StepLine fit_step_line(const std::vector<std::pair<int64_t, double>>& measured);

}  // namespace coppice::cost
