#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coppice/cost/closure.h"
#include "coppice/report/arms.h"

namespace coppice::cost {

/// What the user's own runs say in place of published constants.
struct LocalFit {
  std::optional<ClosureCurve> closure;                 ///< through the runs' own (CPT share, eta)
  report::Spread gap;                                  ///< L_E - L_N, nats; NaN without runs of fixed size
  std::vector<std::pair<int64_t, double>> step_times;  ///< (experts, median seconds per step), rising
  double batch_tokens = 0;                             ///< of those steps
  size_t num_comparisons = 0;
  std::vector<std::string> notes;  ///< what was used, what was left out and why
};

/// eta comes from comparisons (report::compare_arms) whose gap stands clear of its noise: where several seeds were run,
/// above three times its standard error. Step times come from every run.
///
/// Throws   Error{kFormat} if the runs give neither a comparison nor a step time.
LocalFit fit_runs(const std::vector<report::RunRecord>& runs);

}  // namespace coppice::cost
