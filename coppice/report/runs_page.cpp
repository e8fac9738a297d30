#include "coppice/report/runs_page.h"

#include <algorithm>
#include <cmath>

#include "coppice/base/text.h"

namespace coppice::report {
namespace {

const Points* find(const RunRecord& run, const std::string& tag) {
  const auto found = run.series.find(tag);
  return found == run.series.end() ? nullptr : &found->second;
}

// A metric against tokens where the run logged them, else against steps.
Series against_tokens(const RunRecord& run, const std::string& name, const Points& points) {
  Series out{.name = name};
  std::map<double, double> tokens;
  if (const auto* seen = find(run, "tokens_seen")) tokens.insert(seen->begin(), seen->end());
  for (const auto& [step, value] : points) {
    const auto at = tokens.find(step);
    out.x.push_back(at == tokens.end() ? step : at->second);
    out.y.push_back(value);
  }
  return out;
}

std::vector<LineChart::Mark> growth_marks(const std::vector<RunRecord>& runs) {
  std::vector<LineChart::Mark> marks;
  for (const auto& run : runs) {
    for (const auto& event : run.events) {
      const auto* tokens = event.find("tokens_seen");
      if (event.at("event") == Json("growth") && tokens != nullptr) marks.push_back({tokens->as_double(), "growth"});
    }
  }
  return marks;
}

void add_metric_chart(Page& page, const std::vector<RunRecord>& runs, const std::string& tag, const std::string& title,
                      const std::string& unit) {
  LineChart chart{.title = title, .x_label = "tokens seen", .y_label = unit, .marks = growth_marks(runs)};
  for (const auto& run : runs) {
    if (const auto* points = find(run, tag)) chart.series.push_back(against_tokens(run, run.name, *points));
  }
  if (!chart.series.empty()) page.chart(chart);
}

std::string last_value(const RunRecord& run, const std::string& tag, int digits = 4) {
  const auto* points = find(run, tag);
  return points == nullptr || points->empty() ? "-" : number_text(points->back().second, digits);
}

double median_of(const RunRecord& run, const std::string& tag) {
  const auto* points = find(run, tag);
  if (points == nullptr || points->empty()) return NAN;
  std::vector<double> values;
  for (const auto& [step, value] : *points) values.push_back(value);
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

std::vector<std::string> validation_tags(const std::vector<RunRecord>& runs) {
  std::vector<std::string> tags;
  for (const auto& run : runs) {
    for (const auto& [tag, points] : run.series) {
      if (tag.starts_with("validation/") && std::find(tags.begin(), tags.end(), tag) == tags.end()) tags.push_back(tag);
    }
  }
  return tags;
}

}  // namespace

Page runs_page(const std::vector<RunRecord>& runs) {
  Page page(runs.size() == 1 ? cat("Run ", runs.front().name) : cat(runs.size(), " runs"));
  const auto validations = validation_tags(runs);

  Table summary{.header = {"run", "steps", "tokens", "training loss"}};
  for (const auto& tag : validations) summary.header.push_back(tag);
  for (const char* name : {"MaxVio", "gradient norm", "tokens/s (median)"}) summary.header.emplace_back(name);
  for (const auto& run : runs) {
    const auto* loss = find(run, "loss");
    std::vector<std::string> row = {run.name,
                                    loss == nullptr || loss->empty() ? "0" : number_text(loss->back().first, 8),
                                    last_value(run, "tokens_seen", 12), last_value(run, "loss")};
    for (const auto& tag : validations) row.push_back(last_value(run, tag));
    row.push_back(last_value(run, "maxvio/mean"));
    row.push_back(last_value(run, "grad_norm"));
    const double rate = median_of(run, "tokens_per_s");
    row.push_back(std::isnan(rate) ? "-" : number_text(rate, 5));
    summary.rows.push_back(std::move(row));
  }
  page.heading("Summary");
  page.table(summary, "Last values of each run");

  page.heading("Loss");
  add_metric_chart(page, runs, "loss", "Training loss", "nats per token");
  for (const auto& tag : validations) add_metric_chart(page, runs, tag, tag, "nats per token");
  page.heading("Training");
  add_metric_chart(page, runs, "maxvio/mean", "Load imbalance (MaxVio, mean over layers)", "max load / mean - 1");
  add_metric_chart(page, runs, "grad_norm", "Gradient norm", "");
  add_metric_chart(page, runs, "lr", "Learning rate", "");
  add_metric_chart(page, runs, "tokens_per_s", "Speed", "tokens per second");

  page.heading("Configuration");
  for (const auto& run : runs) {
    page.paragraph(run.name);
    page.preformatted(run.config_toml);
  }
  return page;
}

}  // namespace coppice::report
