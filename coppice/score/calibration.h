#pragma once

// The calibration pass: gradients of every expert over some batches of tokens. E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "coppice/data/sampler.h"
#include "coppice/nn/decoder.h"

namespace coppice::score {

/// One number an expert and batch: its sum over batches, and that of its square. Both [E].
struct BatchSums {
  std::vector<double> sum, sum_sq;
  void add(const std::vector<double>& batch);
};

/// One part of a layer's experts: gate and up (fc1), or down (fc2).
struct PartGradients {
  const nn::Parameter* parameter = nullptr;
  at::Tensor batch;   ///< f32: gradient of this batch's mean token loss
  at::Tensor total;   ///< f32: sum of these over the batches
  BatchSums squares;  ///< squared norm of a batch's gradient
};

struct LayerSums {
  PartGradients fc1, fc2;
  BatchSums load;       ///< share of the batch's (token, slot) pairs
  BatchSums gate_mass;  ///< sum of the batch's final gates before routed scaling
};

class Calibration {
 public:
  /// `windows_a_batch` windows of the sampler are one batch. Only experts get gradients from here on.
  Calibration(nn::Decoder& model, const data::Sampler& sampler, int64_t windows_a_batch);

  /// Forward and backward over the windows of batch `index`.
  ///
  /// Throws   Error{kNonFinite} if the loss is not finite.
  void run_batch(uint64_t index);

  const std::map<int64_t, LayerSums>& layers() const { return layers_; }

 private:
  void run_pass(uint64_t first_sample, int64_t size);
  void take_gradients();

  nn::Decoder& model_;
  const data::Sampler& sampler_;
  int64_t windows_;
  std::map<int64_t, LayerSums> layers_;
  std::map<int64_t, std::vector<double>> pairs_, mass_;  // [E] of the present batch, by layer
};

}  // namespace coppice::score
