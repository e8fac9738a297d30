#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "coppice/data/token_file.h"
#include "coppice/dist/world.h"
#include "coppice/families/match.h"
#include "coppice/nn/decoder.h"
#include "coppice/plan/utility.h"

namespace coppice::score {

struct ScoreSettings {
  uint64_t batches = 10;
  uint64_t batch_tokens = 8192;
  int64_t sequence_length = 256;
  bool reset_attention = false;  ///< attention stays within a document
  uint64_t seed = 0;             ///< random seed of the chosen windows
  nn::ComputeDtype dtype = nn::ComputeDtype::kF32;
  at::Device device{at::kCPU};
  /// Limit for weights, gradients and kept activations; 0: half of the device's memory.
  uint64_t max_memory_bytes = 0;
  /// Path of the result. Activations that do not fit into memory, and the finished work of a killed run, are kept
  /// beside it. Empty: all activations stay in memory.
  std::filesystem::path out = {};
  bool resume = false;                      ///< continue a killed run of the same work, on as many ranks
  std::shared_ptr<dist::World> world = {};  ///< ranks that share the work; null: this one
};

/// Computes every utility metric of every expert, from the gradients of the mean token loss over calibration batches
/// and from the routers' choices (docs/score.md).
///
/// Every batch has `batch_tokens` tokens, in windows chosen by `seed`. batch_fisher, load, gate_mass and output_error
/// have one value per batch; their sums and sums of squares over batches are stored. approx_fisher uses Adam's second
/// moments from the checkpoint's optimizer state, or else the mean over batches of squared gradients. The memory limit
/// and a resume do not change a bit of the result.
/// Memory   `max_memory_bytes`, but at least one layer with its gradients and the activations of a pass of about 2,048
///          tokens through the layers in memory. Further activations go to disk.
/// Ranks    collective over all ranks of `world`. Each takes a part of the windows of every batch and has the experts
///          that its place in its expert group gives it. Gradients are summed over ranks before they are squared, so
///          the result, which every rank gets, is that of one rank to rounding. The limit of memory is each rank's (the
///          lowest counts), and each keeps activations in a directory of its own beside `out`. A resumed run goes on
///          from the last layers that all ranks had finished.
/// Threads  at::get_num_threads().
/// Throws   Error{kUnsupported} for a dense model; Error{kUsage} for sizes that do not fit; Error{kNonFinite};
///          Error{kIo}; Error{kInterrupted}.
plan::Scores score_model(const families::Model& model, const std::vector<data::TokenFile>& tokens,
                         const ScoreSettings& settings);

}  // namespace coppice::score
