#include <ATen/ops/gelu.h>
#include <ATen/ops/sigmoid.h>

#include <vector>

#include "coppice/base/check.h"
#include "coppice/kernels/linear.h"
#include "coppice/kernels/rms_norm.h"
#include "coppice/kernels/routing.h"
#include "coppice/kernels/sums.h"
#include "coppice/kernels/swiglu.h"
#include "coppice/nn/block_detail.h"
#include "coppice/nn/router.h"

namespace coppice::nn::detail {
namespace {

using families::Role;

at::Tensor activate(const families::ModelConfig& config, const at::Tensor& gate, const at::Tensor& up) {
  if (config.activation == families::Activation::kGelu) return at::gelu(gate, "tanh") * up;
  return kernels::swiglu(gate, up);
}

at::Tensor dense(const families::ModelConfig& config, const LayerWeights& weights, const at::Tensor& x_TD) {
  const auto part = [&](Role weight, Role bias) { return kernels::linear(x_TD, weights[weight], weights[bias]); };
  at::Tensor active;
  if (weights[Role::kDenseGateUp].defined()) {
    const auto both = kernels::linear(x_TD, weights[Role::kDenseGateUp]).chunk(2, 1);
    active = activate(config, both[0], both[1]);
  } else {
    active = activate(config, part(Role::kDenseGate, Role::kDenseGateBias), part(Role::kDenseUp, Role::kDenseUpBias));
  }
  return kernels::linear(active, weights[Role::kDenseDown], weights[Role::kDenseDownBias]);
}

at::Tensor shared_expert(const LayerWeights& weights, const at::Tensor& x_TD) {
  const auto both = weights[Role::kSharedGateUp].defined()
                        ? kernels::linear(x_TD, weights[Role::kSharedGateUp]).chunk(2, 1)
                        : std::vector<at::Tensor>{kernels::linear(x_TD, weights[Role::kSharedGate]),
                                                  kernels::linear(x_TD, weights[Role::kSharedUp])};
  const auto out_TD = kernels::linear(kernels::swiglu(both[0], both[1]), weights[Role::kSharedDown]);
  const auto& gate = weights[Role::kSharedExpertGate];
  return gate.defined() ? at::sigmoid(kernels::linear(x_TD, gate)) * out_TD : out_TD;
}

/// The MoE feed-forward; sets x_TD of `out` to its result, without the residual.
void experts(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD, BlockOutput& out,
             LayerRouting* routing) {
  const auto& config = *context.config;
  const auto& bias = weights[Role::kRouterBias];
  const auto logits_TE = kernels::linear(x_TD.to(at::kFloat), weights[Role::kRouter].to(at::kFloat),
                                         bias.defined() ? bias.to(at::kFloat) : at::Tensor());
  const LineageRouting* const lineage = context.lineage.get();
  const Routed routed = lineage == nullptr
                            ? route(logits_TE, context.selection_bias_E, config.routing, config.top_k)
                            : route_by_lineage(logits_TE, context.selection_bias_E, config.routing, config.top_k,
                                               *lineage, context.layer, context.first_token);
  if (context.visit_routing) context.visit_routing(context.layer, routed);
  const auto balanced = [&](const at::Tensor& value_E) {
    return lineage == nullptr ? value_E : lineage->lineage->sums(context.layer, value_E);
  };
  if (context.with_aux_loss) {
    out.score_sum = balanced(balancing_distribution(routed, config.routing.gate, context.balance_form).sum(0));
  }
  if (context.with_z_loss) out.z_loss = z_loss(routed.logits_TE);
  at::Tensor count_E;
  if (routing || context.exchange) count_E = kernels::expert_counts(routed.index_TK, config.num_experts);
  if (routing) {
    routing->layer = context.layer;
    routing->count_E = count_E;
    routing->balance_count = balanced(routing->count_E);
    if (context.with_aux_loss) routing->balance_score = out.score_sum.detach();
    routing->gate_mass_E =
        kernels::gate_mass(routed.index_TK, routed.gate_TK, config.num_experts, config.routing.routed_scaling);
    if (context.keep_routing || context.with_output_sq) routing->index_TK = routed.index_TK;
  }
  const bool clamped = config.activation == families::Activation::kClampedSilu;
  const kernels::ExpertForm form{
      clamped ? kernels::ExpertActivation::kClampedSwiglu : kernels::ExpertActivation::kSwiglu,
      weights[Role::kExpertGateBias], weights[Role::kExpertDownBias]};
  const bool with_output_sq = routing && context.with_output_sq;
  at::Tensor* const pair_sq_TK = with_output_sq ? &routing->pair_sq_TK : nullptr;
  const auto &w_gate_up = weights[Role::kExpertGate], &w_down = weights[Role::kExpertDown];
  out.x_TD = context.exchange ? context.exchange->experts(x_TD, w_gate_up, w_down, routed.index_TK, routed.gate_TK,
                                                          count_E, context.kernel, form, pair_sq_TK)
                              : kernels::moe_experts(x_TD, w_gate_up, w_down, routed.index_TK, routed.gate_TK,
                                                     context.kernel, form, pair_sq_TK);
  if (with_output_sq) {
    routing->gate_TK = routed.gate_TK.detach();
    routing->output_sq = kernels::sum_of_squares(out.x_TD.detach());
  }
  if (weights[Role::kSharedDown].defined()) out.x_TD = out.x_TD + shared_expert(weights, x_TD);
}

}  // namespace

BlockOutput run_block(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD,
                      LayerRouting* routing) {
  const auto& config = *context.config;
  const auto added = [&config](const at::Tensor& x) {
    return config.residual_multiplier == 1 ? x : x * config.residual_multiplier;
  };
  const auto attend_to = config.latent ? latent_attention : attention;
  const auto middle_TD =
      x_TD + added(attend_to(context, weights, kernels::rms_norm(x_TD, weights[Role::kInputNorm], config.rms_eps)));
  const auto normed_TD = kernels::rms_norm(middle_TD, weights[Role::kPostAttentionNorm], config.rms_eps);
  if (context.visit_feed_forward) context.visit_feed_forward(context.layer, normed_TD);
  BlockOutput out;
  if (config.moe_layer[context.layer]) {
    experts(context, weights, normed_TD, out, routing);
  } else {
    out.x_TD = dense(config, weights, normed_TD);
  }
  out.x_TD = middle_TD + added(out.x_TD);
  return out;
}

}  // namespace coppice::nn::detail
