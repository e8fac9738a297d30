// The effects of a plan besides its methods: the factors of tensors that make the gates of several children add up to
// their parent's gate, and the new configuration.

#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/plan/checks_detail.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {
namespace {

using families::GateFunction;

struct Factors {
  double selection_bias = 1, down = 1, down_bias = 1;
};

/// Source   docs/expand.md (`--split`, `--top-k scale`), docs/families.md, "Routing classes".
Factors factors_of(const families::ModelConfig& config, const GrowthPlan& plan) {
  Factors out;
  if (plan.top_k_factor == 1) return out;
  const families::Routing& routing = config.routing;
  const auto m = static_cast<double>(plan.top_k_factor);
  const bool whole_gates = routing.gate == GateFunction::kSigmoidTopK && !routing.renormalise;
  // If gates are divided by their p-norm, the gates of the m children add up to m^(1 - 1/p) times the parent's gate.
  const double p = routing.renormalise && routing.gate_norm > 0 ? routing.gate_norm : 1;
  const double sum = whole_gates ? m : std::pow(m, 1 - 1 / p);
  if (plan.split > 1) {
    out.down = m / sum;
    out.down_bias = 1 / sum;
  } else if (sum != 1 && !(whole_gates && config.family->has_routed_scaling)) {
    out.down = out.down_bias = plan.is_undo ? sum : 1 / sum;
  }
  if (routing.gate == GateFunction::kSoftmaxTopK && routing.has_selection_bias) {
    out.selection_bias = plan.is_undo ? m : 1 / m;  // the probabilities, too, are divided among the children
  }
  return out;
}

}  // namespace

void set_factors(const families::ModelConfig& config, GrowthPlan& plan) {
  const Factors factors = factors_of(config, plan);
  plan.selection_bias_factor = factors.selection_bias;
  plan.down_factor = factors.down;
  plan.down_bias_factor = factors.down_bias;
}

void check_factors_follow(const families::ModelConfig& config, const GrowthPlan& plan) {
  GrowthPlan wanted = plan;
  set_factors(config, wanted);
  const auto compare = [](std::string_view what, double found, double right) {
    if (found == right) return;
    throw Error(ErrorCode::kUsage, cat("the plan multiplies ", what, " by ", found, "; wanted ", right,
                                       " for this model (make the plan with expand --dry-run)"));
  };
  compare("selection biases", plan.selection_bias_factor, wanted.selection_bias_factor);
  compare("down matrices", plan.down_factor, wanted.down_factor);
  compare("the biases of down matrices", plan.down_bias_factor, wanted.down_bias_factor);
}

Json grown_config(const families::ModelConfig& config, const GrowthPlan& plan) {
  families::ModelConfig grown = config;
  grown.json = families::with_num_experts(config, plan.experts_after);
  if (plan.top_k_factor > 1) {
    grown.json = families::with_top_k_factor(
        grown, {.factor = plan.top_k_factor, .copies = plan.split == 1, .back = plan.is_undo});
  }
  if (plan.split > 1) grown.json = families::with_expert_width(grown, config.expert_width / plan.split);
  return grown.json;
}

double expert_factor(const GrowthPlan& plan, families::Role role) {
  if (role == families::Role::kExpertDown) return plan.down_factor;
  return role == families::Role::kExpertDownBias ? plan.down_bias_factor : 1.0;
}

}  // namespace coppice::plan
