// A estimate as text.

#include <cmath>

#include "coppice/base/text.h"
#include "coppice/cost/estimate.h"
#include "coppice/report/html.h"

namespace coppice::cost {
namespace {

report::Table size_table(const CostEstimate& estimate) {
  const auto count = [](int64_t value) { return count_text(static_cast<double>(value)); };
  const auto &before = estimate.before.parameters, &after = estimate.after.parameters;
  const auto &m0 = estimate.memory_before, &m1 = estimate.memory_after;
  const auto sent = [](double bytes) {
    return bytes > 0 ? bytes_text(static_cast<uint64_t>(bytes)) : std::string("0");
  };
  return {.header = {"", "before", "after"},
          .rows = {{"experts per layer", cat(estimate.before.experts), cat(estimate.after.experts)},
                   {"parameters", count(before.total), count(after.total)},
                   {"active per token", count(before.active), count(after.active)},
                   {"checkpoint, weights", bytes_text(estimate.weight_bytes_before),
                    bytes_text(estimate.weight_bytes_after)},
                   {"training state per device", bytes_text(m0.total()), bytes_text(m1.total())},
                   {"  weights", bytes_text(m0.weights), bytes_text(m1.weights)},
                   {"  gradients", bytes_text(m0.gradients), bytes_text(m1.gradients)},
                   {"  optimizer", bytes_text(m0.optimizer), bytes_text(m1.optimizer)},
                   {"all-to-all per token", sent(estimate.all_to_all_before), sent(estimate.all_to_all_after)},
                   {"step", duration_text(estimate.steps.before_s), duration_text(estimate.steps.after_s)}}};
}

report::Table estimate_table(const CostEstimate& estimate) {
  const auto &before = *estimate.estimate_before, &after = *estimate.estimate_after;
  const auto row = [](const char* name, double a, double b) {
    return std::vector<std::string>{name, duration_text(a), duration_text(b)};
  };
  return {.header = {"estimated step", "before", "after"},
          .rows = {row("arithmetic", before.compute_s, after.compute_s),
                   row("optimizer", before.optimizer_s, after.optimizer_s),
                   row("all-to-all", before.all_to_all_s, after.all_to_all_s),
                   row("gradient sums", before.reduce_s, after.reduce_s)}};
}

report::Table share_table(const CostEstimate& estimate) {
  report::Table table{.header = {"CPT / tokens before", "expand at", "E->N costs", "saved", "from a checkpoint",
                                 "saved", "eta expected"},
                      .rows = {}};
  if (estimate.uniform_closure) table.header.emplace_back("eta, uniform");
  if (estimate.loss_gap) table.header.emplace_back("nats");
  table.header.emplace_back("");
  for (const ShareRow& row : estimate.rows) {
    std::vector<std::string> cells = {
        percent(row.cpt_share, 0),   percent(row.growth_point),          percent(row.costs.upcycled),
        percent(row.costs.saving()), percent(row.costs.from_checkpoint), percent(row.costs.sunk_saving()),
        percent(row.eta, 0)};
    if (estimate.uniform_closure) cells.push_back(percent(row.eta_uniform, 0));
    if (estimate.loss_gap) cells.push_back(fixed_text(row.eta * *estimate.loss_gap, 3));
    cells.push_back(row.is_yours ? cat("<- yours", row.remark.empty() ? "" : "; ", row.remark) : row.remark);
    table.rows.push_back(std::move(cells));
  }
  return table;
}

// Times for the user's own numbers of tokens, in hours.
report::Table hours_table(const CostEstimate& estimate) {
  const double before = *estimate.tokens_before, after = *estimate.tokens_after;
  const RunCosts costs = run_costs(estimate.steps, before / estimate.batch_tokens, after / estimate.batch_tokens);
  const auto ranks = static_cast<double>(estimate.parallelism.data);
  const auto row = [&](std::string name, double seconds) {
    return std::vector<std::string>{std::move(name), number_text(seconds / 3600, 4),
                                    number_text(seconds / 3600 * ranks, 4)};
  };
  return {.header = {cat("for ", count_text(before), " + ", count_text(after), " tokens"), "hours", "device hours"},
          .rows = {row(cat(estimate.after.experts, " experts from the first token"), costs.fixed),
                   row(cat(estimate.before.experts, ", expanded, ", estimate.after.experts), costs.upcycled),
                   row("the same, from an existing checkpoint", costs.from_checkpoint),
                   row(cat(estimate.before.experts, " experts to the end (the smaller model)"), costs.continued)}};
}

std::string list(std::string_view title, const std::vector<std::string>& items) {
  std::string out = items.empty() ? "" : cat("\n", title, "\n");
  for (const std::string& item : items) out += cat("  - ", shown(item), "\n");
  return out;
}

std::string percent_error(const ClosureCurve& curve) {
  return std::isnan(curve.rms_error) ? std::string("from one point, without an error")
                                     : cat("+- ", fixed_text(100 * curve.rms_error, 1), " points");
}

}  // namespace

std::string CostEstimate::to_text() const {
  const auto& p = parallelism;
  std::string out = cat(family, ": ", before.experts, " -> ", after.experts, " experts in ", before.moe_layers, " of ",
                        before.num_layers, " layers, ", before.top_k, " per token (unchanged)\n", p.data,
                        p.data == 1 ? " device" : " data-parallel devices", ", experts over ", p.expert,
                        parallelism_after.expert == p.expert ? std::string() : cat(" and ", parallelism_after.expert),
                        p.zero1 ? ", ZeRO-1" : "", "; activations are not included (they do not change)\n\n");
  out += report::text_table(size_table(*this));
  out += cat("\nStep time: ", shown(basis_text), "\n");
  if (scaling) out += cat("\n", scaling->to_text(before.experts, after.experts));
  if (estimate_before) out += cat("\n", report::text_table(estimate_table(*this)));
  out += cat("\nCosts as shares of ", after.experts, " experts from the first token to the same number of tokens; eta ",
             percent_error(closure), "\n\n", report::text_table(share_table(*this)));
  if (tokens_before && tokens_after) out += cat("\n", report::text_table(hours_table(*this)));
  out += list("When to expand", when);
  out += list("When it does not pay", does_not_pay);
  out += list("What your runs show", fit_notes);
  report::Table sources{.header = {"constant", "value", "source"}, .rows = {}};
  for (const Constant& constant : constants) sources.rows.push_back({constant.name, constant.value, constant.source});
  return out + cat("\n", report::text_table(sources));
}

}  // namespace coppice::cost
