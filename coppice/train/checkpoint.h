#pragma once

// A checkpoint: a Hugging Face model directory, and in its trainer/ what training needs to go on.

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

/// What a checkpoint carries beside weights and optimizer.
struct Companions {
  std::map<std::string, std::string> files;  ///< tokenizer files: name, contents
  std::optional<Json> lineage;               ///< coppice.json
};

/// Writes the model as `target`: bf16 where it computes in bf16, else f32, the selection bias always f32; then
/// trainer/.
///
/// Memory   one tensor at a time.
/// Throws   Error{kIo}: disk full ...; Error{kNonFinite} naming a tensor that is no number, or none in the file's dtype;
///          nothing is left under the final name nor beside it.
void write_checkpoint(const std::filesystem::path& target, const nn::Decoder& model, const step::Optimizer& optimizer,
                      const TrainerState& state, const Companions& companions);

struct Restored {
  nn::Decoder model;  ///< from the fp32 masters
  step::Optimizer optimizer;
};
/// What training goes on from.
///
/// Throws   Error{kNotFound} if the checkpoint has no trainer/; Error{kFormat, kShape, kNonFinite} naming the tensor.
Restored load_checkpoint(const families::Model& model, nn::ComputeDtype dtype);

}  // namespace coppice::train
