#include "coppice/cost/cost_plan.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cost/advice_detail.h"
#include "coppice/grow/expand.h"

namespace coppice::cost {
namespace {

constexpr std::array<std::string_view, 6> kOfEstimate = {
    "device", "device-flops", "device-memory-rate", "device-network-rate", "utilisation", "sequence-length"};
constexpr std::array<std::string_view, 1> kOfBatch = {"batch-tokens"};
constexpr std::array kShares = {0.1, 0.25, 0.5, 0.75, 1.0};

Device chosen_device(const PlanOptions& o) {
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
  if (count == given.size())
    chosen = {"your device", chosen.flops_per_s, chosen.memory_per_s, chosen.network_per_s, 0, "given"};
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

void take_measured(CostPlan& plan, const std::vector<std::pair<int64_t, double>>& measured, StepBasis basis,
                   std::string_view from) {
  const int64_t e = plan.before.experts, n = plan.after.experts;
  plan.basis = basis;
  plan.steps = {step_of(measured, e), step_of(measured, n)};
  plan.basis_text = cat(from, " with ", counts_text(measured), " experts");
  for (const int64_t experts : {e, n}) {
    if (std::ranges::find(measured, experts, &std::pair<int64_t, double>::first) == measured.end()) {
      plan.basis_text += cat("; ", experts, " predicted by a line through them");
    }
  }
  if (!(plan.steps.before_s > 0 && plan.steps.after_s > 0)) {
    throw Error(ErrorCode::kUsage, cat("step times: the line through the times ", from, " with ", counts_text(measured),
                                       " experts gives no positive time for ", e, " and ", n,
                                       " (measure at numbers further apart, on an idle machine)"));
  }
}

void estimate(CostPlan& plan, const PlanOptions& o) {
  const Device chosen = chosen_device(o);
  const StepWork work{o.batch_tokens, o.sequence_length, o.utilisation};
  plan.estimate_before = estimate_step(plan.before, chosen, plan.parallelism, plan.state, work);
  plan.estimate_after = estimate_step(plan.after, chosen, plan.parallelism, plan.state, work);
  plan.steps = {plan.estimate_before->total_s(), plan.estimate_after->total_s()};
  plan.basis = StepBasis::kEstimate;
  plan.basis_text = cat("ESTIMATED from FLOPs and bytes for ", chosen.name,
                        ", not measured; give --step-time-before and --step-time-after, or --measure");
  plan.constants.push_back(
      {"device",
       cat(chosen.name, ": ", number_text(chosen.flops_per_s, 3), " FLOP/s, memory ",
           number_text(chosen.memory_per_s, 4), " B/s, network ", number_text(chosen.network_per_s, 3), " B/s"),
       std::string(chosen.source)});
  plan.constants.push_back(
      {"utilisation of matrix products", number_text(o.utilisation, 3),
       o.utilisation == PlanOptions{}.utilisation ? "arXiv:2412.09952: 46.8 % MFU of an MoE in NeMo" : "given"});
  if (chosen.memory_bytes > 0 && static_cast<double>(plan.memory_after.total()) > chosen.memory_bytes) {
    plan.does_not_pay.push_back(cat("It does not fit: the training state takes ", bytes_text(plan.memory_after.total()),
                                    " per device without activations, but a ", chosen.name, " has ",
                                    bytes_text(static_cast<uint64_t>(chosen.memory_bytes)),
                                    " (increase --expert-parallel, or use --zero1)."));
  }
}

bool covers_line(const std::vector<std::pair<int64_t, double>>& times) { return times.size() >= 2; }

void set_steps(CostPlan& plan, const PlanOptions& o, const std::vector<std::pair<int64_t, double>>& measured,
               const std::optional<LocalFit>& fit) {
  if (o.step_time_before) {
    plan.basis = StepBasis::kGiven;
    plan.steps = {*o.step_time_before, *o.step_time_after};
    plan.basis_text = "given";
  } else if (covers_line(measured)) {
    take_measured(plan, measured, StepBasis::kMeasured, "measured here");
    plan.batch_tokens = static_cast<double>(measured_tokens(o));
  } else if (fit && covers_line(fit->step_times)) {
    take_measured(plan, fit->step_times, StepBasis::kRuns, "measured in your runs");
    plan.batch_tokens = fit->batch_tokens;
  } else {
    estimate(plan, o);
  }
  if (plan.basis != StepBasis::kEstimate) refuse_given(o, kOfEstimate, cat("step times are ", plan.basis_text));
  if (plan.batch_tokens != o.batch_tokens) refuse_given(o, kOfBatch, cat("step times are ", plan.basis_text));
  plan.constants.push_back({"tokens per step", count_text(plan.batch_tokens),
                            plan.batch_tokens == PlanOptions{}.batch_tokens
                                ? "arXiv:2410.07524: 4 M gave a better loss than 32 M and was faster than 2 M"
                            : plan.basis == StepBasis::kMeasured || plan.basis == StepBasis::kRuns ? plan.basis_text
                                                                                                   : "given"});
  plan.constants.push_back({"step time E, N",
                            cat(duration_text(plan.steps.before_s), ", ", duration_text(plan.steps.after_s)),
                            plan.basis_text});
}

void set_closure(CostPlan& plan, const PlanOptions& o, const std::optional<LocalFit>& fit) {
  plan.loss_gap = o.loss_gap;
  if (fit && fit->closure) {
    plan.closure = *fit->closure;
    if (!plan.loss_gap && fit->gap.mean > 0) plan.loss_gap = fit->gap.mean;
  } else {
    plan.closure = published_utility_closure();
    plan.uniform_closure = published_uniform_closure();
  }
  if (fit) plan.fit_notes = fit->notes;
  const auto add = [&](std::string_view name, const ClosureCurve& curve) {
    const std::string error = std::isnan(curve.rms_error)
                                  ? std::string("one point: no error")
                                  : cat("+- ", fixed_text(100 * curve.rms_error, 1), " points (worst ",
                                        fixed_text(100 * curve.worst_error, 1), ")");
    plan.constants.push_back({std::string(name), cat("f0 = ", number_text(curve.f0, 3), ", ", error), curve.source});
  };
  add("gap closure eta(f) = 1 - exp(-f / f0)", plan.closure);
  if (plan.uniform_closure) add("the same, for equal numbers of copies", *plan.uniform_closure);
  if (plan.loss_gap) {
    plan.constants.push_back(
        {"L_E - L_N", cat(number_text(*plan.loss_gap, 3), " nats"),
         o.loss_gap ? "given" : cat("mean over ", fit->num_comparisons, " comparisons of your runs")});
  }
}

ShareRow row_of(const CostPlan& plan, double share) {
  const double tau = growth_point(share);
  const StepTimes of_fixed{plan.steps.ratio(), 1};
  return {.cpt_share = share,
          .growth_point = tau,
          .costs = run_costs(of_fixed, tau, 1 - tau),
          .eta = plan.closure.eta(share),
          .eta_uniform = plan.uniform_closure ? plan.uniform_closure->eta(share) : NAN,
          .remark = detail::remark_on_share(share, plan.closure.eta(share), plan.uniform_closure.has_value())};
}

void set_rows(CostPlan& plan) {
  for (const double share : kShares) plan.rows.push_back(row_of(plan, share));
  if (!plan.tokens_before || !plan.tokens_after) return;
  const double yours = *plan.tokens_after / *plan.tokens_before;
  const auto place = std::ranges::find_if(plan.rows, [&](const ShareRow& row) { return row.cpt_share >= yours; });
  if (place != plan.rows.end() && place->cpt_share == yours) {
    place->is_yours = true;
  } else {
    plan.rows.insert(place, row_of(plan, yours))->is_yours = true;
  }
}

}  // namespace

CostPlan make_cost_plan(const families::Model& model, const PlanOptions& o,
                        const std::vector<std::pair<int64_t, double>>& measured, const std::optional<LocalFit>& fit) {
  check_options(o, true);
  const auto growth = plan::make_plan(model.config, {.experts = o.experts.value_or(plan::ExpertCount{})}, nullptr);
  const auto bytes = grow::expand_bytes(model, growth);
  CostPlan plan{.family = std::string(model.config.family->model_type),
                .before = model_size(model),
                .after = model_size(model, growth.experts_after),
                .weight_bytes_before = bytes.weights_before,
                .weight_bytes_after = bytes.weights_after,
                .parallelism = {o.data_parallel, o.expert_parallel, o.zero1},
                .state = state_bytes(o),
                .tokens_before = o.tokens_before,
                .tokens_after = o.tokens_after,
                .batch_tokens = o.batch_tokens};
  check_parallelism(plan.parallelism, plan.before.experts, plan.after.experts);
  plan.memory_before = device_memory(plan.before, plan.parallelism, plan.state);
  plan.memory_after = device_memory(plan.after, plan.parallelism, plan.state);
  plan.all_to_all = all_to_all_bytes(plan.after, plan.parallelism);
  plan.measured = measured;
  plan.constants.push_back({"bytes per parameter in training",
                            cat(plan.state.weight, " weight + ", plan.state.gradient, " gradient + ", plan.state.master,
                                " master + 2 x ", plan.state.moment, " moments"),
                            "--weight-dtype, --gradient-dtype, --master-dtype, --moment-dtype"});
  set_steps(plan, o, measured, fit);
  set_closure(plan, o, fit);
  set_rows(plan);
  detail::advise(plan, o.target_closure);
  return plan;
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
