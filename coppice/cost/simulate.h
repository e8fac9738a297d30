#pragma once

#include "coppice/cost/cluster.h"
#include "coppice/cost/memory.h"
#include "coppice/cost/step_time.h"

namespace coppice::cost {

/// The parts of a simulated training step of one rank. Those that are not hidden add up to `total_s`.
struct SimulatedStep {
  double total_s = 0;
  double compute_s = 0;     ///< matrix products and attention, forward and backward
  double optimizer_s = 0;   ///< AdamW over this rank's part of the state
  double all_to_all_s = 0;  ///< rows of tokens to experts and back; nothing is computed meanwhile
  double reduce_s = 0;      ///< gradients that are still on their way when the backward pass ends
  double gather_s = 0;      ///< values that a layer of the forward pass waits for
  double hidden_reduce_s = 0, hidden_gather_s = 0;  ///< the same behind computation
};

/// Simulates a training step as coppice's trainer does it: every MoE layer exchanges its rows before and after its
/// experts; gradients are reduced layer by layer behind the backward pass of the last micro-batch; after the
/// optimizer's step the values are gathered layer by layer behind the next forward pass (with ZeRO-1; without it,
/// gradients are all-reduced).
///
/// A matrix product takes the longer one of its FLOPs and the reading of its weights. Rows of an expert are padded by
/// half a tile on average, to a whole tile at least. So more experts for the same rows take longer.
///
/// What it leaves out: reading and writing of activations, uneven routing, other traffic on the network, the launch of
/// kernels, small messages. Compare steps with it; do not plan a budget with it.
///
/// Throws   Error{kUsage}: check_cluster, and ranks with less than one sequence.
SimulatedStep simulate_step(const ModelSize& size, const Device& device, const Cluster& cluster,
                            const Parallelism& parallelism, const StateBytes& bytes, const StepWork& work);

}  // namespace coppice::cost
