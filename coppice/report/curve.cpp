#include "coppice/report/curve.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "coppice/report/arms.h"

namespace coppice::report {
namespace {

std::filesystem::path parent(const RunRecord& run) {
  return std::filesystem::absolute(run.directory).lexically_normal().parent_path();
}

std::map<double, double> cumulative_seconds(const RunRecord& run, double batch_tokens, double before) {
  std::map<double, double> out;
  const Points* rate = run.find("tokens_per_s");
  if (rate == nullptr || std::isnan(before)) return out;
  double total = before;
  for (const auto& [step, value] : *rate) {
    if (value > 0) total += batch_tokens / value;
    out[step] = total;
  }
  return out;
}

}  // namespace

Series thinned(Series series, size_t most) {
  if (series.x.size() <= most) return series;
  const bool has_band = !series.y_low.empty();
  const size_t stretch = (series.x.size() + most - 1) / most;
  Series out = series;
  for (auto* values : {&out.x, &out.y, &out.y_low, &out.y_high}) values->clear();
  for (size_t begin = 0; begin < series.x.size(); begin += stretch) {
    const size_t end = std::min(begin + stretch, series.x.size());
    double sum = 0, low = NAN, high = NAN;
    size_t count = 0;
    for (size_t i = begin; i < end; ++i) {
      const double y = series.y[i];
      if (!std::isfinite(y)) continue;
      sum += y;
      low = std::fmin(low, has_band ? series.y_low[i] : y);
      high = std::fmax(high, has_band ? series.y_high[i] : y);
      ++count;
    }
    out.x.push_back(series.x[end - 1]);
    out.y.push_back(count > 0 ? sum / static_cast<double>(count) : NAN);
    out.y_low.push_back(low);
    out.y_high.push_back(high);
  }
  return out;
}

int continued_from(const std::vector<RunRecord>& runs, size_t index) {
  const RunSummary own = summarise(runs[index]);
  if (!(own.tokens_before > 0)) return -1;
  int found = -1;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (i == index) continue;
    const RunSummary other = summarise(runs[i]);
    if (other.seed != own.seed || other.tokens_after != own.tokens_before) continue;
    if (found < 0 || parent(runs[i]) == parent(runs[index])) found = static_cast<int>(i);
  }
  return found;
}

std::vector<RunAxes> run_axes(const std::vector<RunRecord>& runs) {
  std::vector<RunSummary> summaries;
  for (const auto& run : runs) summaries.push_back(summarise(run));
  std::vector<RunAxes> out(runs.size());
  std::vector<size_t> order(runs.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::stable_sort(order, {}, [&](size_t i) { return summaries[i].tokens_before; });
  for (const size_t i : order) {  // runs that others continue come first
    if (const Points* tokens = runs[i].find("tokens_seen")) out[i].tokens.insert(tokens->begin(), tokens->end());
    double before = summaries[i].tokens_before > 0 ? NAN : 0;
    if (const int from = continued_from(runs, i); from >= 0 && !out[static_cast<size_t>(from)].seconds.empty()) {
      before = out[static_cast<size_t>(from)].seconds.rbegin()->second;
    }
    out[i].seconds = cumulative_seconds(runs[i], summaries[i].batch_tokens, before);
    out[i].flops_per_token = 6 * summaries[i].active_parameters;
  }
  return out;
}

}  // namespace coppice::report
