#include "coppice/cost/estimate.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cost/advice_detail.h"
#include "coppice/grow/expand.h"

namespace coppice::cost {
namespace {

constexpr std::array<std::string_view, 11> kOfEstimate = {
    "device", "device-flops", "device-memory-rate", "device-network-rate", "utilisation",    "cluster",
    "gpus",   "gpu-tokens",   "micro-batch",        "once-per-rank",       "sequence-length"};
constexpr std::array<std::string_view, 1> kOfBatch = {"batch-tokens"};
constexpr std::array kShares = {0.1, 0.25, 0.5, 0.75, 1.0};

Device chosen_device(const CostOptions& o) {
  Device chosen = device(o.device);
  const std::array given = {std::pair(o.device_flops, &chosen.flops_per_s),
                            std::pair(o.device_memory_rate, &chosen.memory_per_s),
                            std::pair(o.device_network_rate, &chosen.network_per_s)};
  size_t count = 0;
  for (const auto& [value, place] : given) {
    if (!value) continue;
    *place = *value;
    ++count;
  }
  if (count == given.size() || (o.cluster && count + 1 == given.size()))
    chosen = {"your device", chosen.flops_per_s, chosen.memory_per_s, chosen.network_per_s, 0, "given", 0};
  else if (count > 0)
    chosen.source = "data sheet and your values";
  return chosen;
}

double step_of(const std::vector<std::pair<int64_t, double>>& measured, int64_t experts) {
  const auto found = std::ranges::find(measured, experts, &std::pair<int64_t, double>::first);
  return found == measured.end() ? fit_step_line(measured).at(experts) : found->second;
}

std::string counts_text(const std::vector<std::pair<int64_t, double>>& measured) {
  std::vector<std::string> words;
  for (const auto& [experts, seconds] : measured) words.push_back(cat(experts));
  return join(words);
}

void take_measured(CostEstimate& estimate, const std::vector<std::pair<int64_t, double>>& measured, StepBasis basis,
                   std::string_view from) {
  const int64_t e = estimate.before.experts, n = estimate.after.experts;
  estimate.basis = basis;
  estimate.steps = {step_of(measured, e), step_of(measured, n)};
  estimate.basis_text = cat(from, " with ", counts_text(measured), " experts");
  for (const int64_t experts : {e, n}) {
    if (std::ranges::find(measured, experts, &std::pair<int64_t, double>::first) == measured.end()) {
      estimate.basis_text += cat("; ", experts, " predicted by a line through them");
    }
  }
  if (!(estimate.steps.before_s > 0 && estimate.steps.after_s > 0)) {
    throw Error(ErrorCode::kUsage, cat("step times: the line through the times ", from, " with ", counts_text(measured),
                                       " experts gives no positive time for ", e, " and ", n,
                                       " (measure at numbers further apart, on an idle machine)"));
  }
}

void estimate_parts(CostEstimate& estimate, const CostOptions& o, const Device& chosen) {
  const StepWork work = step_work(o, estimate.parallelism.data);
  estimate.estimate_before = estimate_step(estimate.before, chosen, estimate.parallelism, estimate.state, work);
  estimate.estimate_after = estimate_step(estimate.after, chosen, estimate.parallelism_after, estimate.state, work);
  estimate.steps = {estimate.estimate_before->total_s(), estimate.estimate_after->total_s()};
  estimate.basis = StepBasis::kEstimate;
  estimate.basis_text = cat("ESTIMATED from FLOPs and bytes for ", chosen.name,
                            ", not measured; give --step-time-before and --step-time-after, --cluster or --measure");
}

std::string link_text(const Link& link) {
  return cat(number_text(link.bytes_per_s, 4), " B/s and ", number_text(1e6 * link.latency_s, 3), " us");
}

void simulate(CostEstimate& estimate, const CostOptions& o, const Device& chosen) {
  estimate.scaling = simulate_scaling(estimate.before, estimate.after, chosen, o);
  const ScalingRow& first = estimate.scaling->rows.front();
  const Cluster& cluster = estimate.scaling->cluster;
  estimate.steps = {first.before.total_s, first.after.total_s};
  estimate.basis = StepBasis::kSimulated;
  estimate.basis_text = cat("SIMULATED for ", first.gpus, " ", chosen.name, " on ", cluster.name,
                            ", not measured; give --step-time-before and --step-time-after, or --measure");
  estimate.constants.push_back({"cluster",
                                cat(cluster.name, ": nodes of ", cluster.gpus_per_node, ", in a node ",
                                    link_text(cluster.node), ", between nodes ", link_text(cluster.network), " a GPU"),
                                cluster.source});
  estimate.constants.push_back({"N / E of the paper's steps", "1.9",
                                "arXiv:2604.19835v2: 4.2 and 2.2 s with 64 and 32 experts on A100; the number of GPUs, "
                                "their network and expert groups are not in it"});
}

void estimate_times(CostEstimate& estimate, const CostOptions& o) {
  const Device chosen = chosen_device(o);
  o.cluster ? simulate(estimate, o, chosen) : estimate_parts(estimate, o, chosen);
  estimate.constants.push_back(
      {"device",
       cat(chosen.name, ": ", number_text(chosen.flops_per_s, 3), " FLOP/s, memory ",
           number_text(chosen.memory_per_s, 4), " B/s",
           o.cluster ? std::string() : cat(", network ", number_text(chosen.network_per_s, 3), " B/s")),
       std::string(chosen.source)});
  estimate.constants.push_back(
      {"utilisation of matrix products", number_text(o.utilisation, 3),
       o.utilisation == CostOptions{}.utilisation ? "arXiv:2412.09952: 46.8 % MFU of an MoE in NeMo" : "given"});
  if (chosen.memory_bytes > 0 && static_cast<double>(estimate.memory_after.total()) > chosen.memory_bytes) {
    estimate.does_not_pay.push_back(
        cat("It does not fit: the training state takes ", bytes_text(estimate.memory_after.total()),
            " per device without activations, but a ", chosen.name, " has ",
            bytes_text(static_cast<uint64_t>(chosen.memory_bytes)), " (increase --expert-parallel, or use --zero1)."));
  }
}

bool covers_line(const std::vector<std::pair<int64_t, double>>& times) { return times.size() >= 2; }

void set_steps(CostEstimate& estimate, const CostOptions& o, const std::vector<std::pair<int64_t, double>>& measured,
               const std::optional<LocalFit>& fit) {
  if (o.step_time_before) {
    estimate.basis = StepBasis::kGiven;
    estimate.steps = {*o.step_time_before, *o.step_time_after};
    estimate.basis_text = "given";
  } else if (covers_line(measured)) {
    take_measured(estimate, measured, StepBasis::kMeasured, "measured here");
    estimate.batch_tokens = static_cast<double>(measured_tokens(o));
  } else if (fit && covers_line(fit->step_times)) {
    take_measured(estimate, fit->step_times, StepBasis::kRuns, "measured in your runs");
    estimate.batch_tokens = fit->batch_tokens;
  } else {
    estimate_times(estimate, o);
  }
  const bool is_computed = estimate.basis == StepBasis::kEstimate || estimate.basis == StepBasis::kSimulated;
  if (!is_computed) refuse_given(o, kOfEstimate, cat("step times are ", estimate.basis_text));
  if (estimate.batch_tokens != o.batch_tokens) refuse_given(o, kOfBatch, cat("step times are ", estimate.basis_text));
  estimate.constants.push_back({"tokens per step", count_text(estimate.batch_tokens),
                                estimate.batch_tokens == CostOptions{}.batch_tokens
                                    ? "arXiv:2410.07524: 4 M gave a better loss than 32 M and was faster than 2 M"
                                : estimate.basis == StepBasis::kMeasured || estimate.basis == StepBasis::kRuns
                                    ? estimate.basis_text
                                    : "given"});
  estimate.constants.push_back(
      {"step time E, N", cat(duration_text(estimate.steps.before_s), ", ", duration_text(estimate.steps.after_s)),
       estimate.basis_text});
}

void set_closure(CostEstimate& estimate, const CostOptions& o, const std::optional<LocalFit>& fit) {
  estimate.loss_gap = o.loss_gap;
  if (fit && fit->closure) {
    estimate.closure = *fit->closure;
    if (!estimate.loss_gap && fit->gap.mean > 0) estimate.loss_gap = fit->gap.mean;
  } else {
    estimate.closure = published_utility_closure();
    estimate.uniform_closure = published_uniform_closure();
  }
  if (fit) estimate.fit_notes = fit->notes;
  const auto add = [&](std::string_view name, const ClosureCurve& curve) {
    const std::string error = std::isnan(curve.rms_error)
                                  ? std::string("one point: no error")
                                  : cat("+- ", fixed_text(100 * curve.rms_error, 1), " points (worst ",
                                        fixed_text(100 * curve.worst_error, 1), ")");
    estimate.constants.push_back(
        {std::string(name), cat("f0 = ", number_text(curve.f0, 3), ", ", error), curve.source});
  };
  add("gap closure eta(f) = 1 - exp(-f / f0)", estimate.closure);
  if (estimate.uniform_closure) add("the same, for equal numbers of copies", *estimate.uniform_closure);
  if (estimate.loss_gap) {
    estimate.constants.push_back(
        {"L_E - L_N", cat(number_text(*estimate.loss_gap, 3), " nats"),
         o.loss_gap ? "given" : cat("mean over ", fit->num_comparisons, " comparisons of your runs")});
  }
}

ShareRow row_of(const CostEstimate& estimate, double share) {
  const double tau = growth_point(share);
  const StepTimes of_fixed{estimate.steps.ratio(), 1};
  return {.cpt_share = share,
          .growth_point = tau,
          .costs = run_costs(of_fixed, tau, 1 - tau),
          .eta = estimate.closure.eta(share),
          .eta_uniform = estimate.uniform_closure ? estimate.uniform_closure->eta(share) : NAN,
          .remark = detail::remark_on_share(share, estimate.closure.eta(share), estimate.uniform_closure.has_value())};
}

void set_rows(CostEstimate& estimate) {
  for (const double share : kShares) estimate.rows.push_back(row_of(estimate, share));
  if (!estimate.tokens_before || !estimate.tokens_after) return;
  const double yours = *estimate.tokens_after / *estimate.tokens_before;
  const auto place = std::ranges::find_if(estimate.rows, [&](const ShareRow& row) { return row.cpt_share >= yours; });
  if (place != estimate.rows.end() && place->cpt_share == yours) {
    place->is_yours = true;
  } else {
    estimate.rows.insert(place, row_of(estimate, yours))->is_yours = true;
  }
}

}  // namespace

CostEstimate estimate_cost(const families::Model& model, const CostOptions& o,
                           const std::vector<std::pair<int64_t, double>>& measured,
                           const std::optional<LocalFit>& fit) {
  check_options(o, true);
  const auto growth = plan::make_plan(model.config, {.experts = o.experts.value_or(plan::ExpertCount{})}, nullptr);
  const auto bytes = grow::expand_bytes(model, growth);
  CostEstimate estimate{.family = std::string(model.config.family->model_type),
                        .before = model_size(model),
                        .after = model_size(model, growth.experts_after),
                        .weight_bytes_before = bytes.weights_before,
                        .weight_bytes_after = bytes.weights_after,
                        .parallelism = parallelism_of(o, simulated_gpus(o).front(), false),
                        .parallelism_after = parallelism_of(o, simulated_gpus(o).front(), true),
                        .state = state_bytes(o),
                        .tokens_before = o.tokens_before,
                        .tokens_after = o.tokens_after,
                        .batch_tokens = step_work(o, simulated_gpus(o).front()).batch_tokens};
  check_parallelism(estimate.parallelism, estimate.before.experts, estimate.before.experts);
  check_parallelism(estimate.parallelism_after, estimate.after.experts, estimate.after.experts);
  estimate.memory_before = device_memory(estimate.before, estimate.parallelism, estimate.state);
  estimate.memory_after = device_memory(estimate.after, estimate.parallelism_after, estimate.state);
  const StepWork work = step_work(o, estimate.parallelism.data);
  const Exchange exchange =
      exchange_of(estimate.state, work, work.batch_tokens / static_cast<double>(estimate.parallelism.data));
  estimate.all_to_all_before = all_to_all_bytes(estimate.before, estimate.parallelism, exchange);
  estimate.all_to_all_after = all_to_all_bytes(estimate.after, estimate.parallelism_after, exchange);
  estimate.measured = measured;
  estimate.constants.push_back({"bytes per parameter in training",
                                cat(estimate.state.weight, " weight + ", estimate.state.gradient, " gradient + ",
                                    estimate.state.master, " master + 2 x ", estimate.state.moment, " moments"),
                                "--weight-dtype, --gradient-dtype, --master-dtype, --moment-dtype"});
  set_steps(estimate, o, measured, fit);
  set_closure(estimate, o, fit);
  set_rows(estimate);
  detail::advise(estimate, o.target_closure);
  return estimate;
}

std::string closure_summary() {
  const ClosureCurve curve = published_utility_closure();
  std::vector<std::string> words;
  for (const double share : {0.1, 0.25, 0.5, 1.0}) {
    words.push_back(cat(fixed_text(100 * curve.eta(share), 0), " % after ", fixed_text(100 * share, 0), " %"));
  }
  return cat("expected gap closure, experts chosen by gradient utility: ", join(words), " of the tokens before, +- ",
             fixed_text(100 * curve.rms_error, 0),
             " points (arXiv:2604.19835 table 2b; `coppice plan` has costs and sources)");
}

}  // namespace coppice::cost
