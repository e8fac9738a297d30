#pragma once

// The part of the training state that one rank writes to a checkpoint.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "coppice/nn/decoder.h"
#include "coppice/step/optimizer.h"

namespace coppice::save {

/// A tensor of a checkpoint, or the part of one expert in a stack, with its state.
struct SavedTensor {
  families::TensorSlot slot;
  int64_t first_element = 0;               ///< the number of the part's first element in the tensor on disk
  at::Tensor master, exp_avg, exp_avg_sq;  ///< views; master f32, moments f32 or bf16
  int64_t first_step = 0;                  ///< the number of the part's first step count among the tensor's
  std::vector<int64_t> steps;
};

/// The training state that this rank writes: all of it on one rank. On several ranks each tensor, and each expert of a
/// stack, is written by one of the ranks that compute with it.
struct SavedState {
  families::ModelConfig config;
  nn::ComputeDtype dtype{};
  std::vector<SavedTensor> tensors;              ///< in the order of the family's table
  std::map<int64_t, at::Tensor> selection_bias;  ///< by layer, f32 on the host; on rank 0
};

/// The number of step counts of a tensor on disk: one for each expert or router row in it, else one.
int64_t num_steps(const families::TensorSlot& slot, const families::ModelConfig& config);

enum class Copies { kView, kCopy };
/// What this rank writes. As kView the tensors are the model's own, where they are whole here; as kCopy they are on the
/// host (pinned, if they come from a device) and training may go on.
///
/// Memory   kCopy: 12 bytes per parameter on one rank. On several ranks, 12 bytes per parameter written, on the host, and
///          once more those of one parameter on the device.
/// Ranks    collective over those of the model's division; each calls optimizer.wait_for_values before.
SavedState saved_state(const nn::Decoder& model, const step::Optimizer& optimizer, Copies copies);

}  // namespace coppice::save
