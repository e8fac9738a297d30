#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "coppice/data/token_file.h"
#include "coppice/families/match.h"
#include "coppice/nn/decoder.h"
#include "coppice/plan/utility.h"

namespace coppice::score {

struct ScoreSettings {
  uint64_t batches = 10;
  uint64_t batch_tokens = 8192;
  int64_t sequence_length = 256;
  bool reset_attention = false;  ///< documents in a window do not see each other
  uint64_t seed = 0;             ///< of the choice of windows
  nn::ComputeDtype dtype = nn::ComputeDtype::kF32;
  uint64_t max_memory_bytes = 0;  ///< for weights, gradients and kept activations; 0: half of the machine's
  /// Where the result will be; what does not fit in memory, and what a killed run has done, lie beside it. Empty: all
  /// activations stay in memory.
  std::filesystem::path out = {};
  bool resume = false;  ///< go on where a killed run of the same work was; a stopped one leaves what it has
};

/// Every utility metric of every expert from the gradients of the mean token loss over calibration batches (methods.md
/// section 2), and what the routers did.
///
/// Every batch is `batch_tokens` tokens of windows that `seed` picks. Metrics that a batch has of its own
/// (batch_fisher, load, gate_mass, output_error) are stored as sums over batches, with sums of squares for their
/// variance; approx_fisher takes Adam's second moments from the checkpoint's optimizer state, else the mean over
/// batches of squared gradients. Neither memory nor a resumed run changes a bit.
/// Memory   `max_memory_bytes`, but one layer with its gradients at least, and the activations of a pass of some 2,048
///          tokens through the layers in memory. What more activations there are goes to disk.
/// Threads  at::get_num_threads().
/// Throws   Error{kUnsupported} for a dense model; Error{kUsage} for sizes that do not fit; Error{kNonFinite};
///          Error{kIo}; Error{kInterrupted}.
plan::Scores score_model(const families::Model& model, const std::vector<data::TokenFile>& tokens,
                         const ScoreSettings& settings);

}  // namespace coppice::score
