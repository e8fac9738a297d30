// The first screen: what ran and what came out.

#include <algorithm>
#include <cmath>

#include "coppice/base/text.h"
#include "coppice/report/sections_detail.h"

namespace coppice::report::detail {
namespace {

constexpr size_t kMostRows = 60;

double mean_of(const std::map<std::string, double>& values) {
  if (values.empty()) return NAN;
  double sum = 0;
  for (const auto& [name, value] : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double last_step(const RunRecord& run) {
  const Points* loss = run.find("loss");
  return loss == nullptr || loss->empty() ? 0 : loss->back().first;
}

std::string or_dash(double value, const std::string& text) { return std::isfinite(value) && value > 0 ? text : "-"; }

Table run_table(const Reported& all) {
  Table table{
      .header = {"run", "seed", "experts", "steps", "tokens", "training loss", "validation loss", "step", "tokens/s"},
      .rows = {}};
  for (size_t i = 0; i < std::min(all.runs.size(), kMostRows); ++i) {
    const RunSummary& run = all.summaries[i];
    const double step_s = run.step_s_after, validation = mean_of(run.validation);
    const std::string experts = run.grew() ? growth_text(run) : run.experts_after > 0 ? cat(run.experts_after) : "-";
    table.rows.push_back(
        {all.runs[i].name, cat(run.seed), experts, number_text(last_step(all.runs[i]), 8), count_text(run.tokens_after),
         std::isnan(run.loss) ? "-" : fixed_text(run.loss, 4), std::isnan(validation) ? "-" : fixed_text(validation, 4),
         or_dash(step_s, duration_text(step_s)), or_dash(step_s, count_text(run.batch_tokens / step_s))});
  }
  return table;
}

// The growth event's validation losses just after less just before, mean over the files; NaN where it has none.
double jump_of(const Json& event) {
  const Json *before = event.find("validation_before"), *after = event.find("validation_after");
  if (before == nullptr || after == nullptr || !before->is_object() || before->members().empty()) return NAN;
  double sum = 0;
  for (const auto& [file, loss] : before->members()) {
    const Json* then = after->find(file);
    if (then == nullptr || !then->is_number() || !loss.is_number()) return NAN;
    sum += then->as_double() - loss.as_double();
  }
  return sum / static_cast<double>(before->members().size());
}

void add_jumps(const Reported& all, std::vector<Page::Card>& cards) {
  std::vector<double> jumps;
  for (const auto& run : all.runs) {
    for (const JsonReader& event : run.events) {
      if (const double jump = jump_of(event.json()); std::isfinite(jump)) jumps.push_back(jump);
    }
  }
  if (jumps.empty()) return;
  const Spread s = spread(jumps);
  cards.push_back({"Jump at the expansion", cat(fixed_text(s.mean, 4), " nats"),
                   jumps.size() == 1 ? "validation loss just after minus just before"
                                     : cat(fixed_text(s.low, 4), " to ", fixed_text(s.high, 4), " over ", jumps.size(),
                                           " expansions")});
}

std::string nats(double value) { return fixed_text(value, 4); }

void add_closure_cards(const ArmGroup& group, std::vector<Page::Card>& cards) {
  const auto& first = group.seeds.front();
  const std::string seeds = group.seeds.size() == 1 ? "one seed" : cat(group.seeds.size(), " seeds");
  cards.push_back({cat("Gain of expanding ", first.experts_before, " \u2192 ", first.experts_after),
                   cat(nats(group.gain.mean), " nats"),
                   group.seeds.size() == 1
                       ? cat(seeds, ": no spread")
                       : cat(nats(group.gain.low), " to ", nats(group.gain.high), " over ", seeds)});
  if (std::isnan(group.eta.mean)) return;
  cards.push_back({"Gap closure \u03b7", group.eta_is_reliable() ? percent(group.eta.mean) : "not given",
                   group.eta_is_reliable()
                       ? cat(percent(group.eta.low), " to ", percent(group.eta.high), " over ", seeds)
                   : group.seeds.size() == 1 ? cat("one seed, no spread: ", percent(group.eta.mean, 0))
                                             : "the gap is not above three times its standard error"});
}

}  // namespace

void add_overview(Page& page, const Reported& all) {
  page.heading("Results");
  std::vector<Page::Card> cards;
  for (const auto& group : all.arms) {
    if (cards.size() < 6) add_closure_cards(group, cards);
  }
  add_jumps(all, cards);
  double tokens = 0, seconds = 0;
  for (size_t i = 0; i < all.runs.size(); ++i) {
    const RunSummary& run = all.summaries[i];
    tokens += run.tokens_after - run.tokens_before;
    if (std::isfinite(run.step_s_after))
      seconds += run.step_s_after * (run.tokens_after - run.tokens_before) / run.batch_tokens;
  }
  if (all.runs.size() == 1) {
    const RunSummary& run = all.summaries.front();
    if (const double validation = mean_of(run.validation); std::isfinite(validation)) {
      cards.push_back({"Validation loss", fixed_text(validation, 4), "nats per token, the last one"});
    }
    if (std::isfinite(run.loss))
      cards.push_back({"Training loss", fixed_text(run.loss, 4), "mean of the last 10 steps"});
    if (run.grew())
      cards.push_back({"Expanded", growth_text(run), cat("experts, after ", count_text(run.growth_tokens), " tokens")});
  }
  cards.push_back(
      {"Trained", count_text(tokens), all.runs.size() == 1 ? "tokens" : cat("tokens in ", all.runs.size(), " runs")});
  if (seconds > 0) cards.push_back({"Training time", duration_text(seconds), "optimizer steps only, by their median"});
  page.cards(cards);
  page.table(run_table(all), all.runs.size() > kMostRows
                                 ? cat("The first ", kMostRows, " of ", all.runs.size(), " runs.")
                                 : "Last values; step times are medians.");
}

}  // namespace coppice::report::detail
