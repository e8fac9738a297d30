#pragma once

#include <filesystem>

#include "coppice/demo/demo.h"
#include "coppice/demo/prepare.h"
#include "coppice/train/run.h"

namespace coppice::demo {

/// What the models of one seed share.
struct SeedSetting {
  const DemoOptions& options;
  const PreparedData& data;
  uint64_t seed = 0;
  std::filesystem::path directory;  ///< gets trunk, scores.json, expanded, verify.json, control, upcycled, scratch
  int64_t threads = 1;              ///< of each model
  train::StepObserver on_step;
};

/// Trains the trunk, scores, expands and verifies it, and trains the two arms that start there: fills all of `result`
/// but `scratch`. May run beside run_from_scratch.
void run_grown(const SeedSetting& setting, SeedResult& result);

/// Trains the N-expert control: fills `result.scratch`.
void run_from_scratch(const SeedSetting& setting, SeedResult& result);

}  // namespace coppice::demo
