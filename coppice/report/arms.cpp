#include "coppice/report/arms.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <tuple>

#include "coppice/base/error.h"
#include "coppice/base/median.h"
#include "coppice/families/match.h"

namespace coppice::report {
namespace {

constexpr size_t kLastLosses = 10;

int64_t int_setting(const RunRecord& run, std::string_view name) {
  const auto value = run.setting(name);
  return value && value->json().is_number() ? value->as_int() : 0;
}

struct Growth {
  int64_t before = 0, after = 0;
};

// "experts": [E, N] of an event or of a step of a lineage.
Growth growth_of(const JsonReader& json) {
  const auto experts = json.find("experts");
  if (!experts || !experts->json().is_array() || experts->json().items().size() != 2) return {};
  const auto items = experts->items();
  return {items[0].as_int(), items[1].as_int()};
}

Growth newest_growth(const JsonReader& lineage) {
  const auto steps = lineage.find("steps");
  if (!steps || !steps->json().is_array() || steps->json().items().empty()) return {};
  return growth_of(steps->items().back());
}

// Empty for a family that this build does not know; the rest of a report does not need it.
std::optional<families::ModelConfig> readable_config(const Json& config) {
  try {
    if (config.is_object()) return families::read_config(config, "config.json");
  } catch (const Error& error) {
    if (error.code != ErrorCode::kUnsupported) throw;
  }
  return std::nullopt;
}

void add_model(RunSummary& out, const RunRecord& run) {
  const auto config = readable_config(run.model);
  if (!config) return;
  out.experts_after = config->num_experts;
  if (!config->placed_by_weights()) {
    out.active_parameters = static_cast<double>(families::count_parameters(*config).active);
  }
}

// Seconds per step, by step.
Points step_seconds(const RunRecord& run, double batch_tokens) {
  Points out;
  if (const Points* rate = run.find("tokens_per_s")) {
    for (const auto& [step, value] : *rate) {
      if (value > 0) out.emplace_back(step, batch_tokens / value);
    }
  }
  return out;
}

bool same_tokens(double a, double b) { return std::abs(a - b) <= 1e-6 * std::max(a, b); }

// If several runs match, the one in the same directory as `run`.
const RunRecord* nearest_of(const RunRecord& run, const std::vector<const RunRecord*>& candidates) {
  const auto parent = [](const RunRecord& r) {
    return std::filesystem::absolute(r.directory).lexically_normal().parent_path();
  };
  for (const auto* candidate : candidates) {
    if (parent(*candidate) == parent(run)) return candidate;
  }
  return candidates.empty() ? nullptr : candidates.front();
}

double mean_loss(const RunSummary& run, const std::vector<std::string>& files) {
  if (files.empty()) return run.loss;
  double sum = 0;
  for (const auto& file : files) sum += run.validation.at(file);
  return sum / static_cast<double>(files.size());
}

Comparison compare(const RunSummary& upcycled, const RunSummary& control, const RunSummary* fixed) {
  std::vector<std::string> files;
  for (const auto& [file, loss] : upcycled.validation) {
    if (control.validation.contains(file) && (fixed == nullptr || fixed->validation.contains(file)))
      files.push_back(file);
  }
  Comparison out{.seed = upcycled.seed,
                 .experts_before = upcycled.experts_before,
                 .experts_after = upcycled.experts_after,
                 .tokens_before = upcycled.growth_tokens,
                 .tokens_total = upcycled.tokens_after,
                 .loss_control = mean_loss(control, files),
                 .loss_upcycled = mean_loss(upcycled, files),
                 .loss_fixed = fixed == nullptr ? NAN : mean_loss(*fixed, files),
                 .is_validation = !files.empty(),
                 .step_s_before = control.step_s_after,
                 .step_s_after = fixed == nullptr ? upcycled.step_s_after : fixed->step_s_after};
  for (const auto& file : files) out.gain_by_file[file] = control.validation.at(file) - upcycled.validation.at(file);
  return out;
}

}  // namespace

RunSummary summarise(const RunRecord& run) {
  RunSummary out{
      .growth_tokens = NAN, .step_s_before = NAN, .step_s_after = NAN, .loss = NAN, .active_parameters = NAN};
  out.seed = int_setting(run, "train.seed");
  out.batch_tokens = static_cast<double>(int_setting(run, "train.batch_tokens"));
  if (const Points* tokens = run.find("tokens_seen"); tokens != nullptr && !tokens->empty()) {
    if (tokens->size() > 1) out.batch_tokens = (*tokens)[1].second - (*tokens)[0].second;
    out.tokens_before = tokens->front().second - out.batch_tokens;
    out.tokens_after = tokens->back().second;
  }
  const auto path = run.setting("model.path");
  const bool is_new = !path || !path->json().is_string() || path->as_string().empty();
  if (is_new) out.experts_after = int_setting(run, "model.experts");
  add_model(out, run);
  out.experts_before = out.experts_after;

  double growth_step = -1;
  if (const Growth growth = newest_growth(run.lineage); growth.after > growth.before) {
    out.experts_before = growth.before;
    out.experts_after = growth.after;
    if (!is_new) {
      out.growth_tokens = out.tokens_before;
      out.growths = {{out.tokens_before, growth.before, growth.after}};
    }
  }
  for (const JsonReader& event : run.events) {
    if (event.at("event").json() != Json("growth") || !event.find("step")) continue;
    const double step = event.at("step").as_double();
    const Growth growth = growth_of(event);
    if (growth.after <= growth.before) continue;
    if (growth_step < 0) {
      out.experts_before = growth.before;
      out.growths.clear();  // the newest expansion of the model is the last of the run
    }
    out.experts_after = growth.after;
    growth_step = step;
    out.growth_tokens = out.batch_tokens * growth_step;
    out.growths.push_back({out.growth_tokens, growth.before, growth.after});
  }
  std::vector<double> before, after;
  for (const auto& [step, seconds] : step_seconds(run, out.batch_tokens)) {
    (step <= growth_step ? before : after).push_back(seconds);
  }
  out.step_s_before = median(before, NAN);
  out.step_s_after = median(after, NAN);

  if (const Points* losses = run.find("loss"); losses != nullptr && !losses->empty()) {
    const size_t count = std::min(kLastLosses, losses->size());
    out.loss = 0;
    for (size_t i = losses->size() - count; i < losses->size(); ++i) {
      out.loss += (*losses)[i].second / static_cast<double>(count);
    }
  }
  for (const auto& [tag, points] : run.series) {
    if (tag.starts_with("validation/") && !points.empty()) out.validation[tag.substr(11)] = points.back().second;
  }
  return out;
}

std::vector<Comparison> compare_arms(const std::vector<RunRecord>& runs) {
  std::vector<RunSummary> summaries;
  for (const auto& run : runs) summaries.push_back(summarise(run));
  std::vector<Comparison> out;
  for (size_t u = 0; u < runs.size(); ++u) {
    const RunSummary& upcycled = summaries[u];
    if (!upcycled.grew() || !(upcycled.growth_tokens > 0) || upcycled.tokens_after <= upcycled.growth_tokens) continue;
    std::vector<const RunRecord*> controls, fixed;
    for (size_t i = 0; i < runs.size(); ++i) {
      const RunSummary& other = summaries[i];
      if (i == u || other.grew() || other.seed != upcycled.seed ||
          !same_tokens(other.tokens_after, upcycled.tokens_after)) {
        continue;
      }
      if (other.experts_after == upcycled.experts_before) controls.push_back(&runs[i]);
      if (other.experts_after == upcycled.experts_after && other.tokens_before == 0) fixed.push_back(&runs[i]);
    }
    const RunRecord* control = nearest_of(runs[u], controls);
    const RunRecord* scratch = nearest_of(runs[u], fixed);
    if (control == nullptr) continue;
    const auto of = [&](const RunRecord* run) { return &summaries[static_cast<size_t>(run - runs.data())]; };
    Comparison found = compare(upcycled, *of(control), scratch == nullptr ? nullptr : of(scratch));
    found.upcycled = runs[u].name;
    found.control = control->name;
    if (scratch != nullptr) found.fixed = scratch->name;
    if (std::isnan(found.step_s_after)) found.step_s_after = upcycled.step_s_after;
    out.push_back(std::move(found));
  }
  return out;
}

Spread spread(const std::vector<double>& values) {
  if (values.empty()) return {NAN, NAN, NAN, NAN};
  Spread out;
  const auto n = static_cast<double>(values.size());
  for (const double v : values) out.mean += v / n;
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  out.low = *low;
  out.high = *high;
  double squares = 0;
  for (const double v : values) squares += (v - out.mean) * (v - out.mean);
  out.standard_error = values.size() < 2 ? NAN : std::sqrt(squares / (n - 1) / n);
  return out;
}

Spread closure(const std::vector<double>& gains, const std::vector<double>& gaps) {
  if (gains.empty() || gains.size() != gaps.size()) return {NAN, NAN, NAN, NAN};
  std::vector<double> etas, residuals;
  for (size_t i = 0; i < gains.size(); ++i) etas.push_back(gains[i] / gaps[i]);
  Spread out = spread(etas);
  const double mean_gap = spread(gaps).mean;
  out.mean = spread(gains).mean / mean_gap;
  for (size_t i = 0; i < gains.size(); ++i) residuals.push_back((gains[i] - out.mean * gaps[i]) / mean_gap);
  out.standard_error = spread(residuals).standard_error;
  return out;
}

std::vector<ArmGroup> group_arms(const std::vector<Comparison>& comparisons) {
  const auto key = [](const Comparison& c) {
    return std::tuple(std::filesystem::path(c.upcycled).filename().string(), c.experts_before, c.experts_after,
                      c.tokens_before, c.tokens_total);
  };
  std::map<decltype(key(comparisons.front())), ArmGroup> groups;
  for (const auto& comparison : comparisons) groups[key(comparison)].seeds.push_back(comparison);
  std::vector<ArmGroup> out;
  for (auto& [name, group] : groups) {
    const auto of = [&](double (Comparison::*value)() const) {
      std::vector<double> values;
      for (const auto& seed : group.seeds) values.push_back((seed.*value)());
      if (std::ranges::any_of(values, [](double v) { return std::isnan(v); })) values.clear();
      return values;
    };
    const auto gains = of(&Comparison::gain), gaps = of(&Comparison::gap);
    group.gain = spread(gains);
    group.gap = spread(gaps);
    group.eta = closure(gains, gaps);
    out.push_back(std::move(group));
  }
  return out;
}

}  // namespace coppice::report
