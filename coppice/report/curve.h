#pragma once

#include <cstddef>
#include <vector>

#include "coppice/report/html.h"
#include "coppice/report/run_record.h"

namespace coppice::report {

inline constexpr size_t kMostPoints = 300;

/// `series` with at most `most` points: each stands for a stretch of neighbours by their mean, and the range of each
/// stretch (of its band, where it has one) is the band. Unchanged where it has no more than that.
Series thinned(Series series, size_t most = kMostPoints);

/// What a run's steps cost, for charts against tokens, FLOPs or time. What came before a run that continues another one
/// counts in, where that one is known.
struct RunAxes {
  std::map<double, double> tokens, seconds;  ///< step -> total up to and including it
  double flops_per_token;                    ///< 6 x active parameters; NaN: not known
};
/// Of each run, in their order.
std::vector<RunAxes> run_axes(const std::vector<RunRecord>& runs);

/// The run among `runs` that ended where `runs[index]` began, of the same seed; -1 for none.
int continued_from(const std::vector<RunRecord>& runs, size_t index);

}  // namespace coppice::report
