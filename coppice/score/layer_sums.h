#pragma once

// The inputs of the metrics of one MoE layer, summed over passes and batches. E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "coppice/nn/decoder.h"
#include "coppice/plan/utility.h"

namespace coppice::score {

/// One number per expert and batch: its sum and sum of squares over batches. Both f64 [E], on the layer's device.
struct BatchSums {
  at::Tensor sum, sum_sq;
  void add(const at::Tensor& batch);
};

/// Whether a parameter is scored. Matrices of experts are; biases say little about an expert.
bool is_scored(const nn::Parameter& parameter);

/// f64 [E]: sum of v^2 of Adam's second moment over each expert's matrix, on any device; null if there is no optimizer
/// state.
using SecondMoments = std::function<at::Tensor(const nn::Parameter&)>;

/// One linear layer of all experts of an MoE layer: gate and up (fc1), or down (fc2).
class LinearSums {
 public:
  /// `with_squares`: also sums the squares of each weight's gradients over the batches.
  LinearSums(const nn::Parameter& parameter, bool with_squares, const nn::Division* division = nullptr);

  /// Must be called after the backward pass of each part of a batch.
  void end_pass();
  /// Ranks    collective over those with the same experts: sums their gradients before they are squared.
  void end_batch();

  const nn::Parameter& parameter() const { return parameter_; }
  const BatchSums& squared_norms() const { return squared_norms_; }
  at::Tensor mean_gradient(uint64_t batches) const;
  at::Tensor mean_squared_gradient(uint64_t batches) const;  ///< undefined without squares

 private:
  nn::Parameter parameter_;  // shares the layer's tensors
  // f32: gradient of this batch's mean token loss; if the computation is f32, autograd's tensor itself.
  at::Tensor batch_;
  at::Tensor total_;    // f32: sum of batch_ over the batches
  at::Tensor squares_;  // f32: sum of the squares of batch_
  BatchSums squared_norms_;
  const nn::Division* division_;
};

/// Statistics of the router, by batch. Everything stays on the device; the host waits for nothing.
class RoutingSums {
 public:
  RoutingSums(int64_t experts, int64_t top_k, at::Device device, const nn::Division* division = nullptr);

  void add_pass(const nn::LayerRouting& routing);
  /// Ranks    collective over all: sums what they have added.
  void end_batch();

  BatchSums load;                ///< share of the batch's (token, slot) pairs
  BatchSums gate_mass;           ///< sum of the batch's final gates before routed scaling
  BatchSums output_error;        ///< sum of |gate * expert output|^2 divided by the sum of |routed output|^2
  BatchSums gate_concentration;  ///< [1]: mean over tokens of 1 / sum of squared gate shares

 private:
  int64_t top_k_;
  const nn::Division* division_;
  at::Tensor pairs_E_, mass_E_, change_E_;  // f64, of this batch so far, like the next two
  at::Tensor output_sq_, effective_;        // [1]
  int64_t tokens_ = 0;
};

class LayerSums {
 public:
  /// `has_moments`: Adam's second moments are available and need not be estimated from the batches.
  /// `division`, if there are several ranks, outlives the sums.
  LayerSums(const families::ModelConfig& config, const nn::Parameter& fc1, const nn::Parameter& fc2, bool has_moments,
            const nn::Division* division = nullptr);

  void end_pass(const nn::LayerRouting& routing, bool counts = true);
  void end_batch();

  /// Adds every metric of the layer to `scores`, whose counts are set.
  ///
  /// Ranks    collective over the expert group, whose experts it puts together: every rank gets all.
  void add_to(plan::Scores& scores, int64_t layer, const SecondMoments& moments) const;

 private:
  void add_linear(plan::Scores& scores, plan::MetricSums plan::MetricScores::* which, int64_t layer,
                  const LinearSums& linear, const SecondMoments& moments) const;

  LinearSums fc1_, fc2_;
  RoutingSums routing_;
  int64_t experts_;
  const nn::Division* division_;
};

/// The sums of MoE layers in rising order.
using SumsByLayer = std::vector<std::pair<int64_t, LayerSums>>;
/// Sums for the MoE layers of [first, last), all zero.
SumsByLayer begin_sums(const families::ModelConfig& config, const std::vector<nn::Parameter>& parameters, int64_t first,
                       int64_t last, bool has_moments, const nn::Division* division = nullptr);
/// Must be called after the backward pass of each part of a batch; `routing` is of the same layers. A pass that does not
/// count (Pass::counts) may end a batch too.
void end_pass(SumsByLayer& sums, const std::vector<nn::LayerRouting>& routing, bool ends_batch, bool counts = true);

}  // namespace coppice::score
