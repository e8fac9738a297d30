#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include "coppice/train/options.h"

namespace coppice::train {

struct TrainResult {
  int64_t first_step = 0, last_step = 0;
  uint64_t tokens_seen = 0;                       ///< over the whole run, earlier parts included
  double loss = 0;                                ///< mean training loss of the last 10 steps
  std::map<std::string, double> validation_loss;  ///< by token file stem; nats per token
  double seconds_per_step = 0;                    ///< median, the first 2 steps left out
  double tokens_per_s = 0;                        ///< of that step
  double gemm_share = 0;                          ///< of its time, what its matrix products alone would take
  uint64_t peak_rss_bytes = 0;
  std::filesystem::path checkpoint;  ///< newest, empty without `train.out`
};

/// Is told after every step how many tokens it trained, in the thread that called train().
using StepObserver = std::function<void(uint64_t tokens)>;

/// Runs (or resumes) training. Writes the run directory (docs/training.md, "What a run writes") if `train.out` is set.
///
/// Batch s is the sampler's windows [s * B, (s + 1) * B), so that a run may be cut, resumed and branched anywhere:
/// `train.resume` gives the losses of the uninterrupted run bit for bit.
///
/// Units    losses in nats per token.
/// Threads  train.threads; the same losses for the same number (matrix products may round otherwise for another).
///          Several threads may each train a model of their own.
/// Throws   Error{kUsage, kNotFound, kFormat, kIo}; Error{kNonFinite} when the loss becomes NaN (last good checkpoint
///          kept); Error{kInterrupted} after a checkpoint was written on Ctrl-C.
TrainResult train(const TrainOptions& options, const StepObserver& observer = {});

}  // namespace coppice::train
