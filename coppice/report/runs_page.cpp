#include "coppice/report/runs_page.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "coppice/base/text.h"
#include "coppice/report/sections_detail.h"

namespace coppice::report {
namespace detail {

std::string Reported::kin_of(size_t run) const {
  for (const Kin& each : kin) {
    if (std::ranges::find(each.runs, run) != each.runs.end()) return each.name;
  }
  return runs[run].name;
}

std::string percent(double share, int decimals) {
  return std::isfinite(share) ? cat(fixed_text(100 * share, decimals), " %") : "-";
}

std::string growth_text(const RunSummary& run) { return cat(run.experts_before, " \u2192 ", run.experts_after); }

std::optional<std::pair<int64_t, std::string>> layer_tag(std::string_view tag) {
  if (!tag.starts_with(kLayerPrefix)) return std::nullopt;
  tag.remove_prefix(kLayerPrefix.size());
  int64_t layer = -1;
  const auto [end, error] = std::from_chars(tag.data(), tag.data() + tag.size(), layer);
  const std::string_view rest(end, static_cast<size_t>(tag.data() + tag.size() - end));
  if (error != std::errc{} || !rest.starts_with('/') || rest.size() < 2) return std::nullopt;
  return std::pair(layer, std::string(rest.substr(1)));
}

namespace {

std::vector<Reported::Kin> kin_of(const std::vector<RunRecord>& runs) {
  std::vector<Reported::Kin> out;
  for (size_t i = 0; i < runs.size(); ++i) {
    const std::string name = std::filesystem::path(runs[i].name).filename().string();
    const auto found = std::ranges::find(out, name, &Reported::Kin::name);
    if (found == out.end()) {
      out.push_back({name, {i}});
    } else {
      found->runs.push_back(i);
    }
  }
  return out;
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
  Page page(runs.size() == 1 ? cat("Run ", runs.front().name) : cat(runs.size(), " runs"));
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
