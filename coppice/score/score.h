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
  uint64_t seed = 0;  ///< of the choice of windows
  bool f32 = true;    ///< compute in f32 (default) or bf16
};

/// Every utility metric of every expert from the gradients of the mean token loss over calibration batches (methods.md
/// section 2).
///
/// Every batch is `batch_tokens` tokens of windows that `seed` picks. Metrics that a batch has of its own
/// (batch_fisher, load, gate_mass) are stored as sums over batches, with sums of squares for their variance;
/// approx_fisher is there if the checkpoint has optimizer state.
/// Memory   the model, the experts' gradients in f32 and their sum.
/// Threads  at::get_num_threads().
/// Throws   Error{kUnsupported} for a dense model; Error{kUsage} for sizes that do not fit; Error{kNonFinite};
///          Error{kInterrupted}.
upcycle::Scores score_model(const families::Model& model, const std::vector<data::TokenFile>& tokens,
                            const ScoreSettings& settings);

}  // namespace coppice::score
