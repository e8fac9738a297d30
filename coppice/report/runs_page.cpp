#include "coppice/report/runs_page.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "coppice/base/text.h"
#include "coppice/methods/children.h"
#include "coppice/report/sections_detail.h"

namespace coppice::report {
namespace detail {

int Reported::colour_of(const std::string& run) const {
  for (const Kin& each : kin) {
    for (const size_t i : each.runs) {
      if (runs[i].name == run) return each.colour;
    }
  }
  return 0;
}

std::vector<size_t> Reported::grown_first() const {
  std::vector<size_t> order(runs.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::stable_partition(order, [&](size_t i) { return summaries[i].grew(); });
  return order;
}

std::vector<double> times_even(const std::vector<double>& values) {
  double total = 0;
  for (const double value : values) total += value;
  std::vector<double> out;
  for (const double value : values) out.push_back(total > 0 ? value / total * static_cast<double>(values.size()) : NAN);
  return out;
}

std::string growth_text(int64_t before, int64_t after) { return cat(before, " \u2192 ", after); }
std::string growth_text(const RunSummary& run) { return growth_text(run.experts_before, run.experts_after); }

std::optional<std::pair<int64_t, std::string>> layer_tag(std::string_view tag) {
  if (!tag.starts_with(kLayerPrefix)) return std::nullopt;
  tag.remove_prefix(kLayerPrefix.size());
  const size_t slash = tag.find('/');
  const auto layer = methods::layer_number(tag.substr(0, slash));
  if (!layer || slash >= tag.size() - 1) return std::nullopt;
  return std::pair(*layer, std::string(tag.substr(slash + 1)));
}

namespace {

std::vector<Reported::Kin> kin_of(const std::vector<RunRecord>& runs) {
  std::vector<Reported::Kin> out;
  for (size_t i = 0; i < runs.size(); ++i) {
    const std::string name = std::filesystem::path(runs[i].name).filename().string();
    const auto found = std::ranges::find(out, name, &Reported::Kin::name);
    if (found == out.end()) {
      out.push_back({.name = name, .runs = {i}});
    } else {
      found->runs.push_back(i);
    }
  }
  return out;
}

// Expanded runs, their controls and runs from scratch have fixed colours; the others get the remaining ones.
void give_colours(Reported& all) {
  enum Place : int { kControl = 0, kExpanded = 1, kFixed = 2, kOther = 3 };
  const auto place_of = [&](const std::string& run) {
    for (const auto& c : all.comparisons) {
      if (run == c.upcycled) return kExpanded;
      if (run == c.control) return kControl;
      if (run == c.fixed) return kFixed;
    }
    return kOther;
  };
  std::vector<bool> taken(3, false);
  int next = all.comparisons.empty() ? 0 : kOther;
  for (auto& kin : all.kin) {
    const Place place = place_of(all.runs[kin.runs.front()].name);
    const bool is_first = place != kOther && !taken[place];
    if (is_first) taken[place] = true;
    kin.colour = is_first ? static_cast<int>(place) : next++;
  }
}

std::string title_of(const Reported& all) {
  std::vector<std::string> growths;
  for (const auto& run : all.summaries) {
    const std::string text = run.grew() ? cat(growth_text(run), " experts") : "";
    if (!text.empty() && std::ranges::find(growths, text) == growths.end()) growths.push_back(text);
  }
  const bool is_one = all.runs.size() == 1;
  const std::string runs = is_one ? cat("run ", all.runs.front().name) : cat(all.runs.size(), " runs");
  if (!growths.empty()) return cat("Expanding ", join_some(growths, 3), ": ", runs);
  return is_one ? cat("Run ", all.runs.front().name) : runs;
}

}  // namespace
}  // namespace detail

Page runs_page(const std::vector<RunRecord>& runs, const std::optional<Json>& plan) {
  detail::Reported all{.runs = runs,
                       .summaries = {},
                       .axes = run_axes(runs),
                       .files = read_attachments(runs),
                       .comparisons = compare_arms(runs),
                       .arms = {},
                       .plan = plan,
                       .kin = detail::kin_of(runs)};
  for (const auto& run : runs) all.summaries.push_back(summarise(run));
  all.arms = group_arms(all.comparisons);
  detail::give_colours(all);
  Page page(detail::title_of(all));
  detail::add_overview(page, all);
  detail::add_losses(page, all);
  detail::add_closure(page, all);
  detail::add_plan(page, all);
  detail::add_experts(page, all);
  detail::add_choice(page, all);
  detail::add_lineage(page, all);
  detail::add_training(page, all);
  detail::add_configuration(page, all);
  return page;
}

}  // namespace coppice::report
