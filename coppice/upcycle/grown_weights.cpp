#include "coppice/upcycle/grown_weights.h"

#include <algorithm>
#include <utility>

#include "coppice/upcycle/grow.h"

namespace coppice::upcycle {
namespace {

using families::Role;
using families::TensorSlot;

/// The most exact values there are of a tensor: its fp32 master, else the tensor as stored.
io::Checkpoint::Entry best_values(const families::Model& model, const OptimizerState* state, std::string_view name) {
  return state != nullptr && state->has_master(name) ? state->at(name, "master") : model.checkpoint.at(name);
}

OutputTensor grown_expert(const families::Model& model, const GrowthPlan& plan, const TensorSlot& slot,
                          io::TensorInfo info, const OptimizerState* state) {
  const io::Dtype dtype = info.dtype;
  return computed_tensor(std::move(info), [&model, &plan, &slot, state, dtype](std::span<std::byte> out) {
    SourceMatrices sources;
    const auto matrix_of = [&](uint32_t expert) {
      return sources.read(
          best_values(model, state, families::tensor_name(model.config, slot.role(), slot.layer, expert)));
    };
    grow_expert(plan, slot.layer, child_of(plan, slot), slot.role(), matrix_of, dtype, out);
  });
}

OutputTensor grown_router(const families::Model& model, const GrowthPlan& plan, const TensorSlot& slot,
                          io::TensorInfo info, const OptimizerState* state) {
  const io::Dtype dtype = info.dtype;
  return computed_tensor(std::move(info), [&model, &plan, &slot, state, dtype](std::span<std::byte> out) {
    SourceMatrices sources;
    const MatrixBytes before = sources.read(best_values(model, state, slot.name));
    const bool has_bias = model.config.routing.has_router_bias;
    if (before.dtype == dtype) {
      grow_router(plan, slot.layer, slot.role(), before, out, has_bias);
      return;
    }
    std::vector<float> master(static_cast<size_t>(plan.experts_after * before.cols));
    grow_router(plan, slot.layer, slot.role(), before, std::as_writable_bytes(std::span(master)), has_bias);
    io::from_f32(dtype, master, out);
  });
}

}  // namespace

bool is_router(Role role) { return role == Role::kRouter || role == Role::kRouterBias || role == Role::kSelectionBias; }

const Child& child_of(const GrowthPlan& plan, const TensorSlot& slot) {
  return plan.layer(slot.layer).children.at(static_cast<size_t>(slot.expert));
}

std::string source_name(const families::ModelConfig& before, const GrowthPlan& plan, const TensorSlot& slot) {
  if (!families::is_expert(slot.role())) return slot.name;
  return families::tensor_name(before, slot.role(), slot.layer, child_of(plan, slot).parent);
}

std::vector<TensorSlot> grown_slots(const families::Model& model, const families::ModelConfig& after,
                                    const GrowthPlan& plan) {
  std::vector<TensorSlot> slots = families::expected_tensors(after);
  std::erase_if(slots, [&](const TensorSlot& slot) {
    return std::ranges::find(slot.shape, 0) != slot.shape.end() &&
           !model.checkpoint.contains(source_name(model.config, plan, slot));
  });
  return slots;
}

std::vector<OutputTensor> grown_weights(const families::Model& model, const GrowthPlan& plan,
                                        const std::vector<TensorSlot>& slots, const OptimizerState* state) {
  std::vector<OutputTensor> outputs;
  outputs.reserve(slots.size());
  for (const TensorSlot& slot : slots) {
    const io::Checkpoint::Entry source = model.checkpoint.at(source_name(model.config, plan, slot));
    io::TensorInfo info = tensor_info(slot.name, source.info->dtype, slot.shape);
    if (is_router(slot.role())) {
      outputs.push_back(grown_router(model, plan, slot, std::move(info), state));
    } else if (families::is_expert(slot.role()) && !is_plain_copy(plan, child_of(plan, slot))) {
      outputs.push_back(grown_expert(model, plan, slot, std::move(info), state));
    } else {
      outputs.push_back(copied_tensor(std::move(info), source));
    }
  }
  return outputs;
}

}  // namespace coppice::upcycle
