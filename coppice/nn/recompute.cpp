// Activation recomputation: a layer as one autograd function of its input and its weights.

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "coppice/nn/block_detail.h"

namespace coppice::nn::detail {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What cannot travel as a tensor from the forward to the backward pass.
struct Kept : torch::CustomClassHolder {
  explicit Kept(BlockContext kept) : context(std::move(kept)) {}
  BlockContext context;
};

/// Inputs of the function are x and then the weight of each role, undefined ones included.
LayerWeights weights_of(at::TensorList inputs) {
  LayerWeights weights;
  std::copy(inputs.begin() + 1, inputs.end(), weights.all().begin());
  return weights;
}

/// Differentiable outputs that are there: x, then the balancing terms asked for.
variable_list pack(const BlockOutput& out) {
  variable_list list{out.x_TD};
  if (out.score_sum_E.defined()) list.push_back(out.score_sum_E);
  if (out.z_loss.defined()) list.push_back(out.z_loss);
  return list;
}

struct Recomputed : torch::autograd::Function<Recomputed> {
  static variable_list forward(AutogradContext* ctx, const BlockContext& context, LayerRouting* routing,
                               at::TensorList inputs) {
    ctx->saved_data["context"] = at::IValue::make_capsule(c10::make_intrusive<Kept>(context));
    ctx->save_for_backward(inputs.vec());
    return pack(run_block(context, weights_of(inputs), inputs[0], routing));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(ctx->saved_data["context"].toCapsule());
    variable_list inputs = ctx->get_saved_variables(), wanted;
    std::vector<size_t> position;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].defined()) continue;
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
      const variable_list all = pack(run_block(kept->context, weights_of(inputs), inputs[0], nullptr));
      for (size_t i = 0; i < all.size(); ++i) {
        if (!grads[i].defined() || !all[i].requires_grad()) continue;
        outputs.push_back(all[i]);
        output_grads.push_back(grads[i]);
      }
    }
    variable_list found = torch::autograd::grad(outputs, wanted, output_grads, /*retain_graph=*/std::nullopt,
                                                /*create_graph=*/false, /*allow_unused=*/true);
    variable_list result(2 + inputs.size());  // the context and the routing have none
    for (size_t i = 0; i < found.size(); ++i) result[2 + position[i]] = std::move(found[i]);
    return result;
  }
};

}  // namespace

BlockOutput run_block_recomputed(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD,
                                 LayerRouting* routing) {
  variable_list inputs{x_TD};
  auto copy = weights;
  inputs.insert(inputs.end(), copy.all().begin(), copy.all().end());
  const variable_list list = Recomputed::apply(context, routing, at::TensorList(inputs));
  BlockOutput out;
  size_t next = 0;
  out.x_TD = list[next++];
  const bool is_moe = context.config->moe_layer[context.layer];
  if (is_moe && context.with_aux_loss) out.score_sum_E = list[next++];
  if (is_moe && context.with_z_loss) out.z_loss = list[next++];
  return out;
}

}  // namespace coppice::nn::detail
