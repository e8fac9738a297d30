// Gap closure where runs form arms, and the plan's prediction against what happened.

#include <algorithm>
#include <cmath>
#include <set>

#include "coppice/base/text.h"
#include "coppice/report/sections_detail.h"

namespace coppice::report::detail {
namespace {

std::string loss_text(double value) { return std::isfinite(value) ? fixed_text(value, 4) : "-"; }

Table comparison_table(const std::vector<Comparison>& comparisons) {
  Table table{.header = {"expanded run", "seed", "experts", "CPT share", "L_E", "L_up", "L_N", "gain L_E - L_up",
                         "gap L_E - L_N", "\u03b7"},
              .rows = {}};
  for (const auto& c : comparisons) {
    table.rows.push_back({c.upcycled, cat(c.seed), cat(c.experts_before, " \u2192 ", c.experts_after),
                          percent(c.cpt_share(), 0), loss_text(c.loss_control), loss_text(c.loss_upcycled),
                          loss_text(c.loss_fixed), loss_text(c.gain()), loss_text(c.gap()), percent(c.eta())});
  }
  return table;
}

const RunRecord* run_named(const Reported& all, const std::string& name) {
  const auto found = std::ranges::find(all.runs, name, &RunRecord::name);
  return found == all.runs.end() ? nullptr : &*found;
}

// How far `other` lies below the control at equal steps, after the expansion.
Points below_control(const Reported& all, const Comparison& c, const std::string& other) {
  Points out;
  const RunRecord *control = run_named(all, c.control), *run = run_named(all, other);
  if (control == nullptr || run == nullptr) return out;
  const Points own = mean_validation(*run);
  std::map<double, double> of_run(own.begin(), own.end());
  for (const auto& [step, value] : mean_validation(*control)) {
    const auto found = of_run.find(step);
    if (found != of_run.end()) out.emplace_back(step, value - found->second);
  }
  return out;
}

Series spread_over_seeds(const Reported& all, const ArmGroup& group, std::string name, std::string Comparison::* which,
                         int colour) {
  Series out{.name = std::move(name), .colour = colour};
  std::map<double, std::vector<double>> by_tokens;
  for (const auto& seed : group.seeds) {
    const RunRecord* run = run_named(all, seed.*which);
    if (run == nullptr) continue;
    const auto& axes = all.axes[static_cast<size_t>(run - all.runs.data())];
    for (const auto& [step, below] : below_control(all, seed, seed.*which)) {
      const auto tokens = axes.tokens.find(step);
      if (tokens != axes.tokens.end()) by_tokens[tokens->second].push_back(below);
    }
  }
  const bool has_band = group.seeds.size() > 1;
  for (const auto& [tokens, values] : by_tokens) {
    if (values.size() != group.seeds.size()) continue;
    const Spread s = spread(values);
    out.x.push_back(tokens);
    out.y.push_back(s.mean);
    if (!has_band) continue;
    out.y_low.push_back(s.low);
    out.y_high.push_back(s.high);
  }
  return out;
}

LineChart recovery_chart(const Reported& all, const ArmGroup& group) {
  LineChart chart{.title = cat("Below the ", group.seeds.front().experts_before, "-expert model at equal tokens"),
                  .x_label = "tokens seen",
                  .y_label = "nats per token",
                  .zero_line = true};
  for (auto& series :
       {spread_over_seeds(all, group, "expanded", &Comparison::upcycled, 1),
        spread_over_seeds(all, group, cat(group.seeds.front().experts_after, " experts from the first token"),
                          &Comparison::fixed, 2)}) {
    if (!series.x.empty()) chart.series.push_back(series);
  }
  return chart;
}

BarChart domain_chart(const ArmGroup& group) {
  BarChart chart{.title = "Gain of expanding by domain", .x_label = "", .y_label = "L_E - L_up, nats per token"};
  BarChart::Group bars{.name = "gain"};
  std::vector<std::string> files;
  for (const auto& [file, gain] : group.seeds.front().gain_by_file) files.push_back(file);

  for (const auto& [file, gain] : group.seeds.front().gain_by_file) {
    std::vector<double> values;
    for (const auto& seed : group.seeds) {
      if (seed.gain_by_file.contains(file)) values.push_back(seed.gain_by_file.at(file));
    }
    const Spread s = spread(values);
    chart.categories.push_back(domain_of(file, files));
    bars.values.push_back(s.mean);
    if (values.size() > 1) bars.errors.push_back((s.high - s.low) / 2);
  }
  chart.groups.push_back(std::move(bars));
  return chart;
}

std::string verdict(const ArmGroup& group) {
  const auto& first = group.seeds.front();
  const std::string who =
      cat(first.experts_before, " \u2192 ", first.experts_after, " experts, ", percent(first.cpt_share(), 0),
          " continued pre-training, ", group.seeds.size(), group.seeds.size() == 1 ? " seed: " : " seeds: ");
  const std::string gain = cat("expanding gained ", fixed_text(group.gain.mean, 4), " nats over training on with ",
                               first.experts_before, " experts");
  if (std::isnan(group.eta.mean)) {
    return cat(who, gain, ". No run of ", first.experts_after,
               " experts from the first token, so gap closure is not known.");
  }
  if (group.seeds.size() == 1) {
    return cat(who, gain, "; that is ", percent(group.eta.mean, 0), " of the gap of ", fixed_text(group.gap.mean, 4),
               " nats. One seed does not show the noise: repeat the runs before you rely on it.");
  }
  if (!group.eta_is_reliable()) {
    return cat(who, gain, ". The gap L_E - L_N = ", fixed_text(group.gap.mean, 4),
               " nats is not above three times its standard error (", number_text(group.gap.standard_error, 2),
               "), so gap closure cannot be given (use longer runs, more seeds, or a model with less capacity).");
  }
  return cat(who, gain, ", which closes ", percent(group.eta.mean, 0), " of the gap (", percent(group.eta.low, 0),
             " to ", percent(group.eta.high, 0), ").");
}

// One value of a pair [before, after] in the plan; NaN if it is missing.
double number_in(const Json& json, std::string_view key, size_t index) {
  const Json* pair = json.find(key);
  if (pair == nullptr || !pair->is_array() || index >= pair->items().size()) return NAN;
  const Json& value = pair->items()[index];
  return value.is_number() ? value.as_double() : NAN;
}

struct Prediction {
  std::string what;
  double predicted, happened;
  std::string error;  ///< error that the plan gives
  bool is_share = false;
};

std::vector<Prediction> predictions(const Reported& all, const ArmGroup& group) {
  const Json& plan = *all.plan;
  const auto& first = group.seeds.front();
  const Json& step = plan.at("step");
  std::vector<double> before, after;
  for (const auto& seed : group.seeds) {
    before.push_back(seed.step_s_before);
    after.push_back(seed.step_s_after);
  }
  const double e = spread(before).mean, n = spread(after).mean;
  const double plan_e = number_in(step, "seconds", 0), plan_n = number_in(step, "seconds", 1);
  const double tau = first.tokens_before / first.tokens_total;
  std::vector<Prediction> out = {
      {cat("seconds per step, ", first.experts_before, " experts"), plan_e, e, ""},
      {cat("seconds per step, ", first.experts_after, " experts"), plan_n, n, ""},
      {"step time ratio s_E / s_N", plan_e / plan_n, e / n, ""},
      {"time saved against N from the first token", tau * (1 - plan_e / plan_n), tau * (1 - e / n), "", true}};
  const Json& closure = plan.at("closure");
  const double f0 = closure.at("f0").as_double();
  const Json* error = closure.find("rms_error");
  out.push_back(
      {"gap closure \u03b7", -std::expm1(-first.cpt_share() / f0), group.eta.mean,
       error != nullptr && error->is_number() ? cat("\u00b1 ", fixed_text(100 * error->as_double(), 1), " points") : "",
       true});
  return out;
}

}  // namespace

void add_closure(Page& page, const Reported& all) {
  if (all.comparisons.empty()) return;
  page.heading("Gap closure");
  page.paragraph(
      "\u03b7 = (L_E - L_up) / (L_E - L_N) at equal tokens: 0 % is the loss of the smaller model after further "
      "training, 100 % that of the larger model trained from scratch.");
  std::vector<std::string> sentences;
  for (const auto& group : all.arms) sentences.push_back(verdict(group));
  page.list(sentences);
  page.table(comparison_table(all.comparisons),
             "Losses are the last validation losses (mean over the files that all three runs "
             "have), or the last training losses where there are none.");
  std::vector<Page::View> recovery, domains;
  for (const auto& group : all.arms) {
    const auto& first = group.seeds.front();
    const std::string label = cat(first.upcycled, group.seeds.size() > 1 ? " ..." : "");
    if (LineChart chart = recovery_chart(all, group); !chart.series.empty())
      recovery.emplace_back(label, figure(chart));
    if (first.gain_by_file.size() > 1) domains.emplace_back(label, figure(domain_chart(group)));
  }
  page.views(recovery,
             "Above zero the expanded model is ahead of the one that trained on without expanding; where the line "
             "crosses zero, the jump at the expansion is recovered. \u03b7 is its share of the distance to the other "
             "line. Shades: range over seeds.");
  page.views(domains, "Bars are means, whiskers half the range over seeds. A domain below zero lost by expanding.");
}

void add_plan(Page& page, const Reported& all) {
  if (!all.plan || all.arms.empty()) return;
  page.heading("The plan and what happened");
  for (const auto& group : all.arms) {
    Table table{
        .header = {cat(group.seeds.front().upcycled), "predicted", "measured", "difference", "error of the plan"},
        .rows = {}};
    for (const auto& p : predictions(all, group)) {
      const auto text = [&](double v) { return p.is_share ? percent(v) : std::isfinite(v) ? number_text(v, 3) : "-"; };
      const double off = p.is_share ? p.happened - p.predicted : p.happened / p.predicted - 1;
      table.rows.push_back(
          {p.what, text(p.predicted), text(p.happened),
           std::isfinite(off) ? cat(off > 0 ? "+" : "", fixed_text(100 * off, 1), p.is_share ? " points" : " %") : "-",
           p.error});
    }
    page.table(table, cat("Predicted by `coppice plan` (step times: ", all.plan->at("step").at("basis").as_string(),
                          "). Use --fit with these runs to plan the next expansion."));
  }
}

}  // namespace coppice::report::detail
