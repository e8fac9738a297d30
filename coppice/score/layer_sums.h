#pragma once

// What the metrics of one MoE layer are computed from, added up over passes and batches. E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "coppice/nn/decoder.h"
#include "coppice/plan/utility.h"

namespace coppice::score {

/// One number per expert and batch: its sum over batches, and that of its square. Both [E].
struct BatchSums {
  std::vector<double> sum, sum_sq;
  void add(const std::vector<double>& batch);
};

/// Whether a parameter is scored: matrices of experts are; biases say little of an expert.
bool is_scored(const nn::Parameter& parameter);

/// [E]: sum of v^2 of Adam's second moment over each expert's part; null where there is no optimizer state.
using SecondMoments = std::function<std::vector<double>(const nn::Parameter&)>;

/// One part of a layer's experts: gate and up (fc1), or down (fc2).
class PartSums {
 public:
  /// `with_squares`: also sums the squares of each weight's gradients over the batches.
  PartSums(const nn::Parameter& parameter, bool with_squares);

  /// After the backward pass of a part of a batch.
  void end_pass();
  void end_batch();

  const nn::Parameter& parameter() const { return parameter_; }
  const BatchSums& squared_norms() const { return squared_norms_; }
  at::Tensor mean_gradient(uint64_t batches) const;
  at::Tensor mean_squared_gradient(uint64_t batches) const;  ///< undefined without squares

 private:
  nn::Parameter parameter_;  // shares the layer's tensors
  at::Tensor batch_;         // f32: gradient of this batch's mean token loss; where compute is f32, the grad itself
  at::Tensor total_;         // f32: sum of these over the batches
  at::Tensor squares_;       // f32: sum of their squares
  BatchSums squared_norms_;
};

/// What the router did, by batch.
class RoutingSums {
 public:
  RoutingSums(int64_t experts, int64_t top_k);

  void add_pass(const nn::LayerRouting& routing);
  void end_batch();

  BatchSums load;                ///< share of the batch's (token, slot) pairs
  BatchSums gate_mass;           ///< sum of the batch's final gates before routed scaling
  BatchSums output_error;        ///< sum of |gate * expert output|^2, as a share of that of |routed output|^2
  BatchSums gate_concentration;  ///< [1]: mean over tokens of 1 / sum of squared gate shares

 private:
  int64_t top_k_;
  std::vector<double> pairs_, mass_, change_;
  double output_sq_ = 0, effective_ = 0;
  int64_t tokens_ = 0;
};

class LayerSums {
 public:
  /// `has_moments`: Adam's second moments are there and need no estimate from the batches.
  LayerSums(const families::ModelConfig& config, const nn::Parameter& fc1, const nn::Parameter& fc2, bool has_moments);

  void end_pass(const nn::LayerRouting& routing);
  void end_batch();

  /// Every metric of the layer goes into `scores`, whose counts are set.
  void add_to(plan::Scores& scores, int64_t layer, const SecondMoments& moments) const;

 private:
  void add_part(plan::Scores& scores, plan::MetricPart plan::MetricScores::* which, int64_t layer, const PartSums& part,
                const SecondMoments& moments) const;

  PartSums fc1_, fc2_;
  RoutingSums routing_;
};

/// Sums of MoE layers, rising.
using SumsByLayer = std::vector<std::pair<int64_t, LayerSums>>;
/// Of the MoE layers of [first, last), all zero.
SumsByLayer begin_sums(const families::ModelConfig& config, const std::vector<nn::Parameter>& parameters, int64_t first,
                       int64_t last, bool has_moments);
/// After the backward pass of a part of a batch; `routing` is of the same layers.
void end_pass(SumsByLayer& sums, const std::vector<nn::LayerRouting>& routing, bool ends_batch);

}  // namespace coppice::score
