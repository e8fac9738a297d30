#pragma once

// A checkpoint: a Hugging Face model directory whose trainer/ has the state that training needs to continue.

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "coppice/base/json.h"
#include "coppice/families/match.h"
#include "coppice/nn/decoder.h"
#include "coppice/step/optimizer.h"
#include "coppice/train/trainer_state.h"

namespace coppice::train {

/// The contents of a checkpoint besides weights and optimizer state.
struct Companions {
  std::map<std::string, std::string> files;  ///< tokenizer files: name, contents
  std::optional<Json> lineage;               ///< coppice.json
};

/// Writes the model as `target`: bf16 where it computes in bf16, else f32, the selection bias always f32; then
/// trainer/.
///
/// Memory   one tensor at a time, also of a model on a device.
/// Throws   Error{kIo}: disk full ...; Error{kNonFinite} naming a tensor with values that are not finite in the file's
///          dtype; no files remain then.
void write_checkpoint(const std::filesystem::path& target, const nn::Decoder& model, const step::Optimizer& optimizer,
                      const TrainerState& state, const Companions& companions);

struct Restored {
  nn::Decoder model;  ///< from the fp32 masters
  step::Optimizer optimizer;
};
/// Loads the state from which training continues to `device`, tensor by tensor.
///
/// Throws   Error{kNotFound} if the checkpoint has no trainer/; Error{kFormat, kShape, kNonFinite} naming the tensor.
Restored load_checkpoint(const families::Model& model, nn::ComputeDtype dtype, at::Device device = at::kCPU);

}  // namespace coppice::train
