// What the runs are, and their losses against tokens, FLOPs and time.

#include <algorithm>
#include <cmath>
#include <set>

#include "coppice/base/text.h"
#include "coppice/report/sections_detail.h"

namespace coppice::report::detail {
namespace {

enum class Against { kTokens, kSteps, kFlops, kTime };
struct AgainstName {
  Against against;
  const char *label, *axis;
};
constexpr AgainstName kAgainst[] = {{Against::kTokens, "tokens", "tokens seen"},
                                    {Against::kFlops, "FLOPs", "training FLOPs, 6 x active parameters x tokens"},
                                    {Against::kTime, "time", "training time, hours"},
                                    {Against::kSteps, "steps", "optimizer steps"}};

double value_at(const std::map<double, double>& of_step, double step) {
  const auto found = of_step.find(step);
  return found == of_step.end() ? NAN : found->second;
}

double place(const RunAxes& axes, Against against, double step) {
  switch (against) {
    case Against::kTokens: return axes.tokens.empty() ? step : value_at(axes.tokens, step);
    case Against::kSteps: return step;
    case Against::kFlops: return axes.flops_per_token * value_at(axes.tokens, step);
    case Against::kTime: return value_at(axes.seconds, step) / 3600;
  }
  return NAN;
}

Series of_run(const Reported& all, size_t run, const PointsOf& points, Against against) {
  Series out{.name = all.runs[run].name};
  for (const auto& [step, value] : points(all.runs[run])) {
    const double x = place(all.axes[run], against, step);
    if (!std::isfinite(x)) continue;
    out.x.push_back(x);
    out.y.push_back(value);
  }
  return out;
}

// Mean and range over runs that have the same number of points.
Series of_kin(const std::vector<Series>& runs, const std::string& name) {
  Series out{.name = cat(name, ", mean of ", runs.size())};
  for (size_t i = 0; i < runs.front().x.size(); ++i) {
    double x = 0, sum = 0, low = NAN, high = NAN;
    for (const Series& run : runs) {
      x += run.x[i] / static_cast<double>(runs.size());
      sum += run.y[i] / static_cast<double>(runs.size());
      low = std::fmin(low, run.y[i]);
      high = std::fmax(high, run.y[i]);
    }
    out.x.push_back(x);
    out.y.push_back(sum);
    out.y_low.push_back(low);
    out.y_high.push_back(high);
  }
  return out;
}

std::vector<Series> curves(const Reported& all, const PointsOf& points, Against against) {
  std::vector<Series> out;
  for (size_t k = 0; k < all.kin.size(); ++k) {
    std::vector<Series> members;
    for (const size_t run : all.kin[k].runs) {
      if (Series one = of_run(all, run, points, against); !one.x.empty()) members.push_back(std::move(one));
    }
    const auto as_long = [&](const Series& one) { return one.x.size() == members.front().x.size(); };
    const size_t first = out.size();
    if (members.size() > 1 && std::ranges::all_of(members, as_long)) {
      out.push_back(of_kin(members, all.kin[k].name));
    } else {
      for (auto& one : members) out.push_back(std::move(one));
    }
    for (size_t i = first; i < out.size(); ++i) out[i].colour = all.kin[k].colour;
  }
  for (Series& one : out) one = thinned(std::move(one));
  return out;
}

std::vector<Mark> growth_marks(const Reported& all, Against against) {
  std::vector<Mark> marks;
  for (size_t i = 0; i < all.runs.size(); ++i) {
    const RunSummary& run = all.summaries[i];
    if (!(run.batch_tokens > 0)) continue;
    for (const RunSummary::Growth& growth : run.growths) {
      const double step = growth.tokens / run.batch_tokens;
      const double next = run.tokens_before == growth.tokens ? step + 1 : step;
      double x = place(all.axes[i], against, next);
      if (against == Against::kTokens) x = growth.tokens;
      if (against == Against::kFlops) x = all.axes[i].flops_per_token * growth.tokens;
      if (against == Against::kSteps) x = step;
      if (!std::isfinite(x)) continue;
      const auto near = [&](const Mark& mark) { return std::abs(mark.x - x) < 0.02 * x; };
      if (std::ranges::none_of(marks, near)) marks.push_back({x, growth_text(growth.before, growth.after)});
    }
  }
  return marks;
}

LineChart chart_against(const Reported& all, const std::string& title, const std::string& unit, const PointsOf& points,
                        const AgainstName& name) {
  return {.title = title,
          .x_label = name.axis,
          .y_label = unit,
          .series = curves(all, points, name.against),
          .marks = growth_marks(all, name.against)};
}

// The y range shows the end of the curve; a double click shows the first steps too.
std::optional<std::pair<double, double>> interesting_range(const LineChart& chart) {
  double last_x = 0, low = INFINITY, high = -INFINITY;
  for (const Series& one : chart.series) last_x = std::max(last_x, one.x.empty() ? 0 : one.x.back());
  for (const Series& one : chart.series) {
    for (size_t i = 0; i < one.x.size(); ++i) {
      if (one.x[i] < 0.12 * last_x || !std::isfinite(one.y[i])) continue;
      low = std::min(low, one.y_low.empty() ? one.y[i] : one.y_low[i]);
      high = std::max(high, one.y[i]);
    }
  }
  if (!(high > low)) return std::nullopt;
  const double margin = 0.06 * (high - low);
  return std::pair(low - margin, high + margin);
}

}  // namespace

PointsOf of_tag(std::string tag) {
  return [tag = std::move(tag)](const RunRecord& run) {
    const Points* points = run.find(tag);
    return points == nullptr ? Points{} : *points;
  };
}

std::string domain_of(const std::string& tag, const std::vector<std::string>& tags) {
  constexpr std::string_view kPrefix = "validation/", kSuffix = "-validation";
  const bool all_end_so = std::ranges::all_of(tags, [&](const std::string& each) { return each.ends_with(kSuffix); });
  const std::string name = tag.substr(tag.starts_with(kPrefix) ? kPrefix.size() : 0);
  return all_end_so ? name.substr(0, name.size() - kSuffix.size()) : name;
}

Points mean_validation(const RunRecord& run) {
  std::map<double, std::pair<double, size_t>> sums;
  size_t files = 0;
  for (const auto& [tag, points] : run.series) {
    if (!tag.starts_with("validation/")) continue;
    ++files;
    for (const auto& [step, value] : points) {
      sums[step].first += value;
      ++sums[step].second;
    }
  }
  Points out;
  for (const auto& [step, sum] : sums) {
    if (sum.second == files) out.emplace_back(step, sum.first / static_cast<double>(files));
  }
  return out;
}

std::vector<std::string> validation_tags(const std::vector<RunRecord>& runs) {
  std::set<std::string> tags;
  for (const auto& run : runs) {
    for (const auto& [tag, points] : run.series) {
      if (tag.starts_with("validation/")) tags.insert(tag);
    }
  }
  return {tags.begin(), tags.end()};
}

LineChart against_tokens(const Reported& all, const std::string& title, const std::string& unit,
                         const PointsOf& points) {
  return chart_against(all, title, unit, points, kAgainst[0]);
}

std::vector<Page::View> against_all(const Reported& all, const std::string& title, const std::string& unit,
                                    const PointsOf& points, bool is_loss) {
  std::vector<Page::View> views;
  for (const AgainstName& name : kAgainst) {
    LineChart chart = chart_against(all, title, unit, points, name);
    if (chart.series.empty()) continue;
    if (is_loss) chart.y_range = interesting_range(chart);
    views.emplace_back(name.label, figure(chart));
  }
  return views;
}

void add_losses(Page& page, const Reported& all) {
  const auto validation = against_all(all, "Validation loss", "nats per token", mean_validation, true);
  const auto training = against_all(all, "Training loss", "nats per token", of_tag("loss"), true);
  if (validation.empty() && training.empty()) return;
  page.heading("Loss");
  const bool has_kin = all.kin.size() < all.runs.size();
  const std::string shade = has_kin ? " Lines are means over seeds, the shade is their range." : "";
  page.views(validation,
             cat("Mean over the validation files. Compare at equal tokens for quality, at equal time for what it cost; "
                 "dotted lines mark expansions.",
                 shade),
             "against");
  page.views(
      training,
      cat("Judge by validation loss; this one shows spikes and plateaus. Long runs are drawn as means of neighbouring "
          "steps with their range as a shade. Double-click for the first steps.",
          has_kin ? " Runs that differ in the seed are one line." : ""),
      "against");

  const auto tags = validation_tags(all.runs);
  if (tags.size() < 2) return;
  page.heading("Domains");
  std::vector<Page::View> views;
  for (const auto& tag : tags) {
    const std::string domain = domain_of(tag, tags);
    LineChart chart = against_tokens(all, cat("Validation loss on ", domain), "nats per token", of_tag(tag));
    chart.y_range = interesting_range(chart);
    views.emplace_back(domain, figure(chart));
  }
  page.views(views, "One validation file at a time: shows an expansion that helps one kind of text and not another.",
             "domain");
  Table table{.header = {"run"}, .rows = {}};
  for (const auto& tag : tags) table.header.push_back(domain_of(tag, tags));
  for (size_t i = 0; i < all.runs.size(); ++i) {
    std::vector<std::string> row = {all.runs[i].name};
    for (const auto& tag : tags) {
      const auto found = all.summaries[i].validation.find(tag.substr(11));
      row.push_back(found == all.summaries[i].validation.end() ? "-" : fixed_text(found->second, 4));
    }
    table.rows.push_back(std::move(row));
  }
  page.table(table, "Last validation loss of each run, nats per token.");
}

}  // namespace coppice::report::detail
