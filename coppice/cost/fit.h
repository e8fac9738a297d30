#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coppice/cost/closure.h"
#include "coppice/report/arms.h"

namespace coppice::cost {

/// Results of the user's own runs, used instead of published constants.
struct LocalFit {
  std::optional<ClosureCurve> closure;                 ///< fitted to the runs' (CPT share, eta)
  report::Spread gap;                                  ///< L_E - L_N, nats; NaN without runs of fixed size
  std::vector<std::pair<int64_t, double>> step_times;  ///< (experts, median seconds per step), rising
  double batch_tokens = 0;                             ///< tokens per step of those steps
  size_t num_comparisons = 0;
  std::vector<std::string> notes;  ///< what was used, and what was left out and why
};

/// eta comes from comparisons (report::compare_arms) whose gap is clearly above its noise: with several seeds, above
/// three times its standard error. Step times come from every run.
///
/// Throws   Error{kFormat} if the runs give neither a comparison nor a step time.
LocalFit fit_runs(const std::vector<report::RunRecord>& runs);

}  // namespace coppice::cost
