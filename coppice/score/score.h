#pragma once

#include <cstdint>
#include <vector>

#include "coppice/data/token_file.h"
#include "coppice/families/match.h"
#include "coppice/upcycle/utility.h"

namespace coppice::score {

struct ScoreSettings {
  uint64_t batches = 10;
  uint64_t batch_tokens = 8192;
  int64_t sequence_length = 256;
  uint64_t seed = 0;       ///< of the choice of windows
  bool f32 = true;         ///< compute in f32 (default) or bf16
};

/// Every utility metric of every expert from the gradients of the mean token loss over calibration batches (methods.md section 2).
///
/// Memory   the model, its gradients in f32 and their sum.
upcycle::Scores score_model(const families::Model& model, const std::vector<data::TokenFile>& tokens, const ScoreSettings& settings);

}  // namespace coppice::score
