#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "coppice/dist/world.h"
#include "coppice/train/options.h"

namespace coppice::train {

struct TrainResult {
  int64_t first_step = 0, last_step = 0;
  uint64_t tokens_seen = 0;                       ///< over the whole run, including earlier parts
  double loss = 0;                                ///< mean training loss of the last 10 steps
  std::map<std::string, double> validation_loss;  ///< by token file stem; nats per token
  double seconds_per_step = 0;                    ///< median, without the first 2 steps
  double tokens_per_s = 0;                        ///< for that step time
  /// Time of the step's matrix products at the speed of one large product, divided by that step time.
  double gemm_share = 0;
  uint64_t peak_rss_bytes = 0;
  std::filesystem::path checkpoint;  ///< newest, empty without `train.out`
};

/// Called after every step with its number of tokens, in the thread that called train().
using StepObserver = std::function<void(uint64_t tokens)>;

/// Runs (or resumes) training. Writes the run directory (docs/training.md, "What a run writes") if `train.out` is set.
///
/// Batch s consists of the sampler's windows [s * B, (s + 1) * B), so a run may be stopped, resumed and branched
/// anywhere: with `train.resume` the losses are bit-equal to those of an uninterrupted run.
///
/// Units    losses in nats per token.
/// Ranks    collective over `world` (null: one rank). The ranks divide every batch, the optimizer state and, with an
///          expert group of several, the experts; the first one writes everything but its share of checkpoints.
/// Threads  train.threads; the losses are the same for the same number (for another number, matrix products may round
///          differently). Several threads may each train their own model.
/// Throws   Error{kUsage, kNotFound, kFormat, kIo}; Error{kNonFinite} when the loss becomes NaN (last good checkpoint
///          kept); Error{kInterrupted} after a checkpoint was written on Ctrl-C.
TrainResult train(const TrainOptions& options, const StepObserver& observer = {},
                  std::shared_ptr<dist::World> world = nullptr);

}  // namespace coppice::train
