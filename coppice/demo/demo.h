#pragma once

#include <vector>

#include "coppice/demo/options.h"
#include "coppice/demo/results.h"

namespace coppice::demo {

/// How much is trained: constants of the options.
struct Budget {
  int64_t steps = 0;        ///< T, per arm that is trained from nothing
  int64_t growth_step = 0;  ///< tau
  int64_t batch_tokens = 0;
  uint64_t evaluation_tokens = 0;  ///< of each domain, for the table; validation text permitting
};
/// Throws   Error{kUsage} if the options leave less than 40 steps, or growth_at leaves one side empty.
Budget budget(const DemoOptions& options);

/// The whole story: text, tokenizer, token files; per seed a trunk, its scores and expansion, and three arms; table and
/// report.html. Every intermediate file stays in options.out. A demo that was cut off goes on at the first seed that is
/// not finished.
///
/// Throws   what the steps throw; Error{kUsage} if options.out holds a demo with other settings.
std::vector<SeedResult> run_demo(const DemoOptions& options);

}  // namespace coppice::demo
