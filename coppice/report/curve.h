#pragma once

#include <cstddef>
#include <vector>

#include "coppice/report/html.h"
#include "coppice/report/run_record.h"

namespace coppice::report {

inline constexpr size_t kMostPoints = 300;

/// `series` reduced to at most `most` points. Each point is the mean of consecutive points, and the band is their range
/// (or that of their bands). Unchanged if it has no more points than that.
Series thinned(Series series, size_t most = kMostPoints);

/// The cost of a run's steps, for charts against tokens, FLOPs or time. For a run that continues another known run, the
/// cost of that run is included.
struct RunAxes {
  std::map<double, double> tokens, seconds;  ///< step -> total up to and including it
  double flops_per_token;                    ///< 6 x active parameters; NaN: not known
};
/// The axes of each run, in their order.
std::vector<RunAxes> run_axes(const std::vector<RunRecord>& runs);

/// The run among `runs` that ended where `runs[index]` began, of the same seed; -1 for none.
int continued_from(const std::vector<RunRecord>& runs, size_t index);

}  // namespace coppice::report
