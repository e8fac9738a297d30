#pragma once

// Expert parallelism: the experts of one MoE layer over the ranks of an expert group.
// T tokens of this rank, D model dimension, E experts of the layer, K choices per token; F expert width; O experts of
// this rank.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "coppice/dist/group.h"
#include "coppice/kernels/moe.h"
#include "coppice/nn/division.h"

namespace coppice::nn {

/// What the exchange of one layer needs to know of the placement, on the device.
class ExpertExchange {
 public:
  ExpertExchange(dist::Group& group, const ExpertPlacement& placement, at::Device device);

  /// kernels::moe_experts over the experts of all ranks of the group: every rank gives its tokens and gets their outputs.
  ///
  /// Each (token, slot) pair goes as a row to the rank of its expert, with its gate; the row's output comes back, and
  /// the K outputs of a token are added at home in f32, in slot order. A rank may have no row, or all.
  /// Shapes   x_TD; w_gate_up_OGD, w_down_ODF and `form` of the experts of this rank; index_TK over all E; count_E pairs
  ///          by expert; returns y_TD. Sets `pair_sq_TK`, if given, as moe_experts.
  /// Dtypes   as moe_experts. In bf16 each pair's output is rounded once more than on one rank.
  /// Devices  any. The host waits for the counts of rows, once a call, and as moe_experts does; in the backward pass
  ///          only as moe_experts does.
  /// Memory   the rows that this rank's experts get, [*, D], besides what moe_experts keeps of them; while it runs, the
  ///          rows that leave and those that come back, [T*K, D] together.
  /// Ranks    collective over the group. Forward: all_to_all of the counts (E int64), rows, gates (f32), outputs, with
  ///          `pair_sq_TK` also of those; backward: gradients of outputs, rows and gates. What a layer sends depends on
  ///          what the layer before has received, and in the backward pass the other way round, so all ranks send in the
  ///          same order. A pass through it must be made by all ranks, differentiated by all or by none.
  at::Tensor experts(const at::Tensor& x_TD, const at::Tensor& w_gate_up_OGD, const at::Tensor& w_down_ODF,
                     const at::Tensor& index_TK, const at::Tensor& gate_TK, const at::Tensor& count_E,
                     kernels::MoeKernel kernel, const kernels::ExpertForm& form = {},
                     at::Tensor* pair_sq_TK = nullptr) const;

 private:
  dist::Group& group_;
  std::vector<int64_t> experts_of_;  // number, by rank
  at::Tensor position_E_;            // of an expert when those of this rank come first, then those of rank 0, 1, ...
  at::Tensor expert_at_E_;           // the inverse
};

/// One for each divided layer.
using ExpertExchanges = std::map<int64_t, ExpertExchange>;

/// Empty without a world, or if every rank has all experts. The groups belong to `division.world`.
ExpertExchanges make_exchanges(const Division& division, at::Device device);

}  // namespace coppice::nn
