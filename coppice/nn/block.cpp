#include <ATen/ops/linear.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros.h>

#include "coppice/base/check.h"
#include "coppice/kernels/rms_norm.h"
#include "coppice/kernels/sum_of_squares.h"
#include "coppice/kernels/swiglu.h"
#include "coppice/nn/block_detail.h"
#include "coppice/nn/router.h"

namespace coppice::nn::detail {
namespace {

using families::Role;

at::Tensor feed_forward(const LayerWeights& weights, Role gate, Role up, Role down, const at::Tensor& x_TD) {
  return at::linear(kernels::swiglu(at::linear(x_TD, weights[gate]), at::linear(x_TD, weights[up])), weights[down]);
}

/// Sum over tokens of each expert's final gate before routed scaling.
at::Tensor gate_mass(const Routed& routed, int64_t num_experts, double routed_scaling) {
  const auto gate_TK = routed.gate_TK.detach().contiguous();
  const auto mass_E = at::zeros({num_experts}, gate_TK.options().dtype(at::kDouble));
  const auto* const gate = gate_TK.const_data_ptr<float>();
  const auto* const expert = routed.index_TK.const_data_ptr<int64_t>();
  auto* const mass = mass_E.mutable_data_ptr<double>();
  for (int64_t pair = 0; pair < gate_TK.numel(); ++pair) mass[expert[pair]] += gate[pair] / routed_scaling;
  return mass_E;
}

at::Tensor shared_expert(const LayerWeights& weights, const at::Tensor& x_TD) {
  const auto out_TD = feed_forward(weights, Role::kSharedGate, Role::kSharedUp, Role::kSharedDown, x_TD);
  const auto& gate = weights[Role::kSharedExpertGate];
  return gate.defined() ? at::sigmoid(at::linear(x_TD, gate)) * out_TD : out_TD;
}

/// The MoE feed-forward; x_TD of `out` becomes its result, residual apart.
void experts(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD, BlockOutput& out,
             LayerRouting* routing) {
  const auto& config = *context.config;
  const auto& bias = weights[Role::kRouterBias];
  const auto logits_TE = at::linear(x_TD.to(at::kFloat), weights[Role::kRouter].to(at::kFloat),
                                    bias.defined() ? bias.to(at::kFloat) : at::Tensor());
  const Routed routed = route(logits_TE, context.selection_bias_E, config.routing, config.top_k);
  if (context.with_aux_loss) out.score_sum_E = routed.score_TE.sum(0);
  if (context.with_z_loss) out.z_loss = z_loss(logits_TE);
  if (routing) {
    routing->layer = context.layer;
    routing->count_E = kernels::expert_counts(routed.index_TK, config.num_experts);
    routing->gate_mass_E = gate_mass(routed, config.num_experts, config.routing.routed_scaling);
    if (context.keep_routing || context.with_output_sq) routing->index_TK = routed.index_TK;
  }
  const bool with_output_sq = routing && context.with_output_sq;
  out.x_TD = kernels::moe_experts(x_TD, weights[Role::kExpertGate], weights[Role::kExpertDown], routed.index_TK,
                                  routed.gate_TK, context.kernel, with_output_sq ? &routing->pair_sq_TK : nullptr);
  if (with_output_sq) {
    routing->gate_TK = routed.gate_TK.detach();
    routing->output_sq = kernels::sum_of_squares(out.x_TD.detach());
  }
  if (weights[Role::kSharedGate].defined()) out.x_TD = out.x_TD + shared_expert(weights, x_TD);
}

}  // namespace

BlockOutput run_block(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD,
                      LayerRouting* routing) {
  const double epsilon = context.config->rms_eps;
  const auto middle_TD =
      x_TD + attention(context, weights, kernels::rms_norm(x_TD, weights[Role::kInputNorm], epsilon));
  const auto normed_TD = kernels::rms_norm(middle_TD, weights[Role::kPostAttentionNorm], epsilon);
  BlockOutput out;
  if (context.config->moe_layer[context.layer]) {
    experts(context, weights, normed_TD, out, routing);
  } else {
    out.x_TD = feed_forward(weights, Role::kDenseGate, Role::kDenseUp, Role::kDenseDown, normed_TD);
  }
  out.x_TD = middle_TD + out.x_TD;
  return out;
}

}  // namespace coppice::nn::detail
