#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/find_row.h"
#include "coppice/base/lane_sum.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"
#include "coppice/convert/plan.h"
#include "coppice/methods/changes_nothing.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/new_router.h"
#include "coppice/methods/purpose.h"

namespace coppice::convert {
namespace {

constexpr int64_t kDraws = int64_t{1} << 17;

struct ScaleRow : ScaleMode {
  ExpertScale (*spread)(double a);
};
constexpr ScaleRow kModes[] = {
    {{"cbrt", "gate, up and down times a^(1/3) each; trains better from the start", "arXiv:2410.07524"},
     [](double a) -> ExpertScale { return {std::cbrt(a), std::cbrt(a), std::cbrt(a)}; }},
    {{"down", "down times a; keeps the function for every activation", "arXiv:2410.07524"},
     [](double a) -> ExpertScale { return {1, 1, a}; }},
    {{"none", "no scaling", {}}, [](double) -> ExpertScale { return {}; }},
};

/// The sum of a token's K gates for the router logits of each choice (a virtual group, or an expert).
double gate_sum(const ConversionPlan& plan, std::vector<double> logits, int64_t experts_a_choice) {
  const auto chosen = static_cast<std::ptrdiff_t>(plan.top_k / experts_a_choice);
  std::ranges::nth_element(logits, logits.begin() + (chosen - 1), std::greater<>());
  const bool sigmoid = plan.routing == "sigmoid_topk";
  const double largest = *std::ranges::max_element(logits);
  const auto weight = [&](double z) { return sigmoid ? 1 / (1 + std::exp(-z)) : std::exp(z - largest); };
  double of_chosen = 0, of_all = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double w = weight(logits[i]);
    of_all += w;
    if (std::cmp_less(i, chosen)) of_chosen += w;
  }
  return sigmoid ? of_chosen * static_cast<double>(experts_a_choice) : of_chosen / of_all;
}

}  // namespace

std::span<const ScaleMode> scale_modes() {
  static const auto kNames = [] {
    std::array<ScaleMode, std::size(kModes)> names;
    std::ranges::copy(kModes, names.begin());
    return names;
  }();
  return kNames;
}

bool gates_sum_to_one(const ConversionPlan& plan) {
  const bool all_answer =
      plan.top_k == plan.experts;  // all experts are chosen, with their shares of a softmax over all
  return plan.routing == "topk_softmax" || plan.renormalise || (plan.routing == "softmax_topk" && all_answer);
}

double function_scale(const ConversionPlan& plan) {
  const auto experts = static_cast<double>(plan.experts), g = static_cast<double>(plan.granularity);
  const auto k = static_cast<double>(plan.top_k);
  if (gates_sum_to_one(plan)) return g;
  return plan.routing == "sigmoid_topk" ? 2 * g / k : experts * g / k;
}

double calibration_factor(const ConversionPlan& plan, double logit_std) {
  const int64_t of_choice = plan.experts_a_row();
  const auto choices = static_cast<size_t>(plan.experts / of_choice);
  const Rng rng({.seed = plan.seed, .purpose = methods::kCalibration});
  std::vector<float> normals(choices);
  std::vector<double> logits(choices);
  LaneSum sum;
  for (int64_t draw = 0; draw < kDraws; ++draw) {
    rng.fill_normal(static_cast<uint64_t>(draw) * choices, normals.data(), choices);
    std::ranges::transform(normals, logits.begin(), [&](float x) { return logit_std * static_cast<double>(x); });
    sum.add(gate_sum(plan, logits, of_choice));
  }
  return sum.mean() / gate_sum(plan, std::vector<double>(choices, 0.0), of_choice);
}

ExpertScale expert_scale(const ConversionPlan& plan, std::string_view mode, bool calibrate, int64_t model_dim) {
  const ScaleRow& row = find_row(std::span<const ScaleRow>(kModes), "scale", mode);
  double a = function_scale(plan);
  if (calibrate) {
    const methods::NewRouter& router = methods::new_router(plan.router.name);
    std::string_view reason;
    if (mode == "none") reason = "nothing is scaled";
    if (gates_sum_to_one(plan)) reason = "the gates add up to 1 for all logits";
    if (router.name == "zero") reason = "rows of zero give equal logits";
    if (router.logit_std == nullptr) reason = "the logits of rows from a file are not known";
    if (!reason.empty()) throw Error(ErrorCode::kUsage, cat("calibrate: ", reason, " (leave it out)"));
    const methods::Params params(router.name, router.params, plan.router.given);
    a /= calibration_factor(plan, router.logit_std(model_dim, params));
  }
  return row.spread(a);
}

plan::Exactness conversion_exactness(const ConversionPlan& plan, std::string_view activation, int64_t width,
                                     int64_t model_dim) {
  const auto no = [](const std::string& reason) { return plan::Exactness{false, cat("Not exact: ", reason)}; };
  const auto unknown = [](const std::string& reason) {
    return plan::Exactness{false, cat("Unknown: ", reason), false};
  };
  const ExpertScale& s = plan.scale;
  const double a = function_scale(plan);
  const bool all_answer = plan.top_k == plan.experts, equal_gates = plan.router.name == "zero";
  if (plan.parents > 1) {
    return no(cat("the experts come from ", plan.parents, " models and the other tensors are ",
                  plan.trunk == "average" ? "their average" : "the first one's", "."));
  }
  const bool inits = plan.init_all || plan.experts > plan.slices();
  if (inits && !methods::expert_init(plan.expert_init.name).same_function &&
      !methods::changes_nothing(plan.expert_init, width, model_dim)) {
    return no(
        cat(plan.expert_init.to_text(), " changes the weights of ", plan.init_all ? "experts." : "copies of a slice."));
  }
  if (plan.granularity > 1 && !(all_answer && equal_gates)) {
    if (!plan.virtual_groups && all_answer) return no("without virtual groups each slice has its own gate.");
    if (!plan.virtual_groups)
      return no("without virtual groups a token's experts may not have all slices of the dense layer.");
    if (equal_gates)
      return unknown("with rows of zero all experts tie, so the chosen experts may not be whole virtual groups.");
  }
  if (plan.granularity > 1 && plan.router.name == "rows")
    return unknown("it depends on the given router rows: exact only if the rows of each virtual group are equal.");
  if (!gates_sum_to_one(plan) && !equal_gates) {
    return no(cat("the gates of a token's ", plan.top_k,
                  " experts do not add up to a constant, so the scale can only be right on average (exact: --routing "
                  "topk_softmax --scale down, or a family that renormalises gates)."));
  }
  if (a == 1 && s == ExpertScale{}) {
    return {true, "Exact up to rounding: every expert is the dense layer, and the gates of a token add up to 1."};
  }
  if (s.gate == 1 && s.up == 1 && s.down == a) {
    return {true, "Exact up to rounding: a token's experts have every slice equally often, and down is scaled."};
  }
  if (s == ExpertScale{}) return no(cat("without scaling the output is 1/", number_text(a), " of the dense layer's."));
  if (activation == "relu") {
    return {true,
            "Exact up to rounding: a token's experts have every slice equally often, and ReLU commutes with a positive "
            "factor."};
  }
  return no(cat("gate, up and down are scaled by ", number_text(s.gate), ", ", number_text(s.up), " and ",
                number_text(s.down), ", but ", activation, " is not linear (exact: --scale down)."));
}

}  // namespace coppice::convert
