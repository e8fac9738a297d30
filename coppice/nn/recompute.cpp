// Activation recomputation: a layer as one autograd function of its input and weights.

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "coppice/nn/block_detail.h"

namespace coppice::nn::detail {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Data for the backward pass that are not tensors.
struct Kept : torch::CustomClassHolder {
  BlockContext context;
  std::vector<size_t> roles;  ///< of the function's inputs after x
};

LayerWeights weights_of(const Kept& kept, at::TensorList inputs) {
  LayerWeights weights;
  for (size_t i = 0; i < kept.roles.size(); ++i) weights.all()[kept.roles[i]] = inputs[i + 1];
  return weights;
}

/// The differentiable outputs: x, then the requested balancing terms.
variable_list pack(const BlockOutput& out) {
  variable_list list{out.x_TD};
  if (out.score_sum.defined()) list.push_back(out.score_sum);
  if (out.z_loss.defined()) list.push_back(out.z_loss);
  return list;
}

struct Recomputed : torch::autograd::Function<Recomputed> {
  static variable_list forward(AutogradContext* ctx, const c10::intrusive_ptr<Kept>& kept, LayerRouting* routing,
                               at::TensorList inputs) {
    ctx->saved_data["kept"] = at::IValue::make_capsule(kept);
    ctx->save_for_backward(inputs.vec());
    return pack(run_block(kept->context, weights_of(*kept, inputs), inputs[0], routing));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(ctx->saved_data["kept"].toCapsule());
    variable_list inputs = ctx->get_saved_variables(), wanted;
    std::vector<size_t> position;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const bool needs_grad = inputs[i].requires_grad();
      inputs[i] = inputs[i].detach();
      if (!needs_grad) continue;
      inputs[i].set_requires_grad(true);
      wanted.push_back(inputs[i]);
      position.push_back(i);
    }
    variable_list outputs, output_grads;
    {
      at::AutoGradMode with_grad(true);
      const variable_list all = pack(run_block(kept->context, weights_of(*kept, inputs), inputs[0], nullptr));
      for (size_t i = 0; i < all.size(); ++i) {
        if (!grads[i].defined()) continue;
        outputs.push_back(all[i]);
        output_grads.push_back(grads[i]);
      }
    }
    variable_list found = torch::autograd::grad(outputs, wanted, output_grads, /*retain_graph=*/std::nullopt,
                                                /*create_graph=*/false, /*allow_unused=*/true);
    variable_list result(2 + inputs.size());  // the first two arguments of forward have no gradient
    for (size_t i = 0; i < found.size(); ++i) result[2 + position[i]] = std::move(found[i]);
    return result;
  }
};

}  // namespace

BlockOutput run_block_recomputed(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD,
                                 LayerRouting* routing) {
  const auto kept = c10::make_intrusive<Kept>();
  kept->context = context;
  variable_list inputs{x_TD};
  for (size_t role = 0; role < weights.all().size(); ++role) {
    if (!weights.all()[role].defined()) continue;
    kept->roles.push_back(role);
    inputs.push_back(weights.all()[role]);
  }
  const variable_list list = Recomputed::apply(kept, routing, at::TensorList(inputs));
  BlockOutput out;
  size_t next = 0;
  out.x_TD = list[next++];
  const bool is_moe = context.config->moe_layer[context.layer];
  if (is_moe && context.with_aux_loss) out.score_sum = list[next++];
  if (is_moe && context.with_z_loss) out.z_loss = list[next++];
  return out;
}

}  // namespace coppice::nn::detail
