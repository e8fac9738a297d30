#include "coppice/cost/fit.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::cost {
namespace {

using report::ArmGroup;

std::string name_of(const ArmGroup& group) {
  const auto& first = group.seeds.front();
  return cat(first.upcycled,
             group.seeds.size() > 1
                 ? cat(" and ", group.seeds.size() - 1, group.seeds.size() == 2 ? " other seed" : " other seeds")
                 : "",
             " (", first.experts_before, " -> ", first.experts_after, ")");
}

// Adds the group's points, or a note why it has none.
void add_points(const ArmGroup& group, std::vector<ClosurePoint>& points, LocalFit& fit) {
  if (std::isnan(group.eta.mean)) {
    fit.notes.push_back(cat(
        name_of(group), ": no eta, because no run with N experts from the first token has the same seed and tokens"));
    return;
  }
  const double limit = group.seeds.size() > 1 ? 3 * group.gap.standard_error : 0;
  if (!(group.gap.mean > limit)) {
    fit.notes.push_back(cat(name_of(group), ": no eta, because the gap L_E - L_N = ", number_text(group.gap.mean, 3),
                            " nats is not above ", limit > 0 ? "three times its standard error" : "zero"));
    return;
  }
  for (const auto& seed : group.seeds) points.push_back({seed.cpt_share(), seed.eta()});
  fit.notes.push_back(cat(name_of(group), ": CPT share ", number_text(100 * group.seeds.front().cpt_share(), 3),
                          " %, eta ", fixed_text(100 * group.eta.mean, 1), " %",
                          group.seeds.size() > 1 ? cat(" (", fixed_text(100 * group.eta.low, 1), " to ",
                                                       fixed_text(100 * group.eta.high, 1), ")")
                                                 : std::string(", one seed: no spread"),
                          group.seeds.front().is_validation ? "" : "; of training losses"));
}

void add_step_times(const std::vector<report::RunRecord>& runs, LocalFit& fit) {
  std::map<int64_t, std::vector<double>> by_experts;
  for (const auto& run : runs) {
    const auto summary = report::summarise(run);
    const bool has_times = summary.step_s_before > 0 || summary.step_s_after > 0;
    if (has_times && fit.batch_tokens > 0 && summary.batch_tokens != fit.batch_tokens) {
      fit.notes.push_back(cat(run.name, ": no step times, because a step has ", summary.batch_tokens,
                              " tokens instead of ", fit.batch_tokens));
      continue;
    }
    if (has_times) fit.batch_tokens = summary.batch_tokens;
    if (summary.step_s_before > 0) by_experts[summary.experts_before].push_back(summary.step_s_before);
    if (summary.step_s_after > 0) by_experts[summary.experts_after].push_back(summary.step_s_after);
  }
  for (auto& [experts, seconds] : by_experts) {
    if (experts < 1) continue;
    std::ranges::sort(seconds);
    fit.step_times.emplace_back(experts, seconds[seconds.size() / 2]);
  }
}

}  // namespace

LocalFit fit_runs(const std::vector<report::RunRecord>& runs) {
  LocalFit fit;
  const auto comparisons = report::compare_arms(runs);
  fit.num_comparisons = comparisons.size();
  std::vector<ClosurePoint> points;
  std::vector<double> gaps;
  for (const auto& group : report::group_arms(comparisons)) add_points(group, points, fit);
  for (const auto& comparison : comparisons) {
    if (!std::isnan(comparison.gap())) gaps.push_back(comparison.gap());
  }
  fit.gap = report::spread(gaps);
  if (!points.empty()) {
    const std::string source =
        cat("fitted on ", points.size(), points.size() == 1 ? " comparison" : " comparisons", " of your runs (--fit)");
    fit.closure = fit_closure(std::move(points), source);
  }
  add_step_times(runs, fit);
  if (comparisons.empty()) {
    fit.notes.emplace_back(
        "no expanded run has a control (a run with the same seed, the same tokens and the number of experts before the "
        "expansion)");
  }
  if (!fit.closure && fit.step_times.empty()) {
    throw Error(ErrorCode::kFormat, cat("--fit: ", runs.size(), runs.size() == 1 ? " run gives" : " runs give",
                                        " neither gap closure nor step times (", join(fit.notes, "; "), ")"));
  }
  return fit;
}

}  // namespace coppice::cost
