#include "coppice/upcycle/grown_weights.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/expert_layout.h"
#include "coppice/upcycle/child_piece_detail.h"
#include "coppice/upcycle/grow.h"

namespace coppice::upcycle {
namespace {

using families::Model;
using families::Role;
using families::TensorSlot;
using io::Checkpoint;

/// The most exact values there are of a tensor: its fp32 master, else the tensor as stored.
Checkpoint::Entry best_values(const Model& model, const OptimizerState* state, std::string_view name) {
  return state != nullptr && state->has_master(name) ? state->at(name, "master") : model.checkpoint.at(name);
}

/// What is only ever copied, whatever the method.
bool is_always_copied(Role role) { return role == Role::kExpertCompanion || role == Role::kAttentionExpert; }

/// The tensor of one expert, or the one that stacks all experts of a layer: a piece for each child.
OutputTensor grown_experts(const Model& model, const GrowthPlan& plan, const TensorSlot& slot, io::TensorInfo info,
                           const Checkpoint::Entry& source, const OptimizerState* state) {
  const bool stacked = slot.rule->layout.stacked;
  const io::Dtype dtype = info.dtype;
  OutputTensor out{std::move(info), {}};
  TensorSlot before = slot;
  before.shape = source.info->shape;
  const auto slice_of = [&model](const TensorSlot& of, const Checkpoint::Entry& entry, int64_t expert) {
    return families::expert_slice(of, entry.info->bytes, model.config.num_experts, expert);
  };
  const auto original = [&model, &slot, state, stacked, slice_of](uint32_t expert) -> detail::StoredExpert {
    const auto entry = best_values(model, state, stacked ? slot.name : families::name_for_expert(slot, expert));
    return {entry, slice_of(slot, entry, expert)};
  };
  const auto add = [&](const Child& child) {
    if (is_always_copied(slot.role()) || is_plain_copy(plan, slot.layer, child, slot.role())) {
      const families::ExpertSlice slice = slice_of(slot, source, child.parent);
      out.pieces.push_back(
          {.bytes = slice.bytes, .file = source.file, .offset = source.info->offset + slice.offset, .compute = {}});
    } else {
      out.pieces.push_back(detail::child_piece(plan, child, before, slot, dtype, original));
    }
  };
  if (stacked) {
    std::ranges::for_each(plan.layer(slot.layer).children, add);
  } else {
    add(child_of(plan, slot));
  }
  return out;
}

/// Rows of the experts by the plan; the choices behind them, which are no experts, stay behind them.
OutputTensor grown_rows(const Model& model, const GrowthPlan& plan, const TensorSlot& slot, io::TensorInfo info,
                        const OptimizerState* state) {
  const Checkpoint::Entry stored = model.checkpoint.at(slot.name);
  const int64_t rows = model.config.router_rows();
  const uint64_t row_bytes = stored.info->bytes / static_cast<uint64_t>(rows);
  const io::Dtype dtype = info.dtype;
  OutputTensor out{std::move(info), {}};
  const auto copy_rows = [&](int64_t first, int64_t count) {
    out.pieces.push_back({.bytes = row_bytes * static_cast<uint64_t>(count),
                          .file = stored.file,
                          .offset = stored.info->offset + row_bytes * static_cast<uint64_t>(first),
                          .compute = {}});
  };
  if (is_router(slot.role())) {
    const int64_t cols = stored.info->elements() / rows;
    const auto compute = [&model, &plan, &slot, state, dtype, cols](uint64_t, std::span<std::byte> bytes) {
      SourceMatrices sources;
      const Checkpoint::Entry entry = best_values(model, state, slot.name);
      sources.hold(entry);
      const auto width = io::dtype_bytes(entry.info->dtype);
      const MatrixBytes before{entry.info->dtype, plan.experts_before, cols,
                               entry.data().first(static_cast<size_t>(plan.experts_before * cols) * width)};
      const bool has_bias = model.config.routing.has_router_bias;
      if (before.dtype == dtype) {
        grow_router(plan, slot.layer, slot.role(), before, bytes, has_bias);
        return;
      }
      std::vector<float> master(static_cast<size_t>(plan.experts_after * cols));
      grow_router(plan, slot.layer, slot.role(), before, std::as_writable_bytes(std::span(master)), has_bias);
      io::from_f32(dtype, master, bytes);
    };
    out.pieces.push_back({.bytes = row_bytes * static_cast<uint64_t>(plan.experts_after), .compute = compute});
  } else {
    for (const Child& child : plan.layer(slot.layer).children) copy_rows(child.parent, 1);
  }
  if (rows > plan.experts_before) copy_rows(plan.experts_before, rows - plan.experts_before);
  return out;
}

/// The first dimension that counts experts, after growth.
std::vector<int64_t> grown_shape(const TensorSlot& slot, const families::ModelConfig& before, int64_t experts) {
  std::vector<int64_t> shape = slot.shape;
  if (families::has_rows(slot.role())) {
    int64_t& rows =
        shape.front() == before.router_rows() ? shape.front() : shape.back();  // [1, experts] of ernie4_5_moe
    rows += experts - before.num_experts;
  } else {
    shape.front() = shape.front() / before.num_experts * experts;
  }
  return shape;
}

TensorSlot renumbered(const TensorSlot& slot, int64_t expert) {
  TensorSlot out = slot;
  out.name = families::name_for_expert(slot, expert);
  out.expert = expert;
  return out;
}

/// Units of an expert: rows of gate and up and of their biases, columns of down.
void cut_units(TensorSlot& slot, int64_t parts) {
  const Role role = slot.role();
  if (parts == 1 || is_always_copied(role) || role == Role::kExpertDownBias) return;
  const bool is_last = families::is_bias(role) || (role == Role::kExpertDown) != slot.rule->layout.transposed;
  slot.shape.at(slot.shape.size() - (is_last ? 1 : 2)) /= parts;
}

/// Slots [first, end) are the experts of one layer, sorted by expert: the same of every child.
void grow_own_tensors(std::span<const TensorSlot> run, const GrowthPlan& plan, std::vector<TensorSlot>& out) {
  const auto of_expert = [&](int64_t expert) { return std::ranges::equal_range(run, expert, {}, &TensorSlot::expert); };
  const auto& children = plan.layer(run.front().layer).children;
  for (size_t child = 0; child < children.size(); ++child) {
    for (const TensorSlot& slot : of_expert(children[child].parent))
      cut_units(out.emplace_back(renumbered(slot, static_cast<int64_t>(child))), plan.split);
  }
  for (const TensorSlot& slot : run) {  // what longcat_flash saves for choices that are no experts
    if (slot.expert >= plan.experts_before)
      out.push_back(renumbered(slot, slot.expert - plan.experts_before + plan.experts_after));
  }
}

}  // namespace

bool is_router(Role role) { return role == Role::kRouter || role == Role::kRouterBias || role == Role::kSelectionBias; }

const Child& child_of(const GrowthPlan& plan, const TensorSlot& slot) {
  return plan.layer(slot.layer).children.at(static_cast<size_t>(slot.expert));
}

std::string source_name(const GrowthPlan& plan, const TensorSlot& slot) {
  if (slot.expert < 0) return slot.name;
  if (slot.expert >= plan.experts_after)
    return families::name_for_expert(slot, slot.expert - plan.experts_after + plan.experts_before);
  return families::name_for_expert(slot, child_of(plan, slot).parent);
}

GrowthPlan with_all_layers(const Model& model, GrowthPlan plan) {
  const auto known = [&](int64_t layer) { return std::ranges::find(plan.layers, layer, &LayerPlan::layer); };
  for (const int64_t layer : model.layers_with_experts) {
    if (known(layer) != plan.layers.end()) continue;
    if (plan.layers.empty()) {
      throw Error(ErrorCode::kUnsupported,
                  cat("layer ", layer, " has experts and lies behind the ", model.config.num_layers,
                      " layers that config.json counts, of which none has any (correct num_hidden_layers, or the key "
                      "that says which layers are dense)"));
    }
    const LayerPlan last = plan.layers.back();
    plan.layers.push_back({layer, last.children});
  }
  std::ranges::sort(plan.layers, {}, &LayerPlan::layer);
  return plan;
}

std::vector<TensorSlot> grown_slots(const Model& model, const GrowthPlan& plan) {
  std::vector<TensorSlot> slots;
  for (size_t i = 0; i < model.slots.size();) {
    const TensorSlot& slot = model.slots[i];
    size_t end = i + 1;
    if (slot.expert >= 0) {
      while (end < model.slots.size() && model.slots[end].expert >= model.slots[end - 1].expert &&
             model.slots[end].layer == slot.layer) {
        ++end;
      }
      grow_own_tensors(std::span(model.slots).subspan(i, end - i), plan, slots);
    } else {
      slots.push_back(slot);
      if (slot.rule->layout.stacked || families::has_rows(slot.role()))
        slots.back().shape = grown_shape(slot, model.config, plan.experts_after);
      if (slot.rule->layout.stacked) cut_units(slots.back(), plan.split);
    }
    i = end;
  }
  return slots;
}

void check_values(const Model& model, const GrowthPlan& plan) {
  const bool only_copies = std::ranges::all_of(plan.layers, [&](const LayerPlan& layer) {
    return std::ranges::all_of(layer.children, [&](const Child& child) { return is_plain_copy(plan, child); });
  });
  if (only_copies) return;
  for (const TensorSlot& slot : model.slots) {
    if (!families::is_expert(slot.role()) || slot.role() == Role::kAttentionExpert) continue;
    const io::Dtype dtype = model.checkpoint.at(slot.name).info->dtype;
    if (slot.role() != Role::kExpertCompanion && io::is_float(dtype)) continue;
    const std::string stored =
        cat(model.config.is_quantised() ? cat("quantised with ", model.config.quantisation, " and ") : std::string(),
            "stored in ", io::dtype_name(dtype));
    const std::string what = plan.split > 1 ? "a split" : cat("'", plan.expert_init.name, "'");
    throw Error(ErrorCode::kUnsupported,
                cat("'", slot.name, "': the experts are ", stored, ", and ", what,
                    " changes values (choose expert-init copy, which copies every byte, or expand the checkpoint in "
                    "bf16)"));
  }
}

std::vector<OutputTensor> grown_weights(const Model& model, const GrowthPlan& plan,
                                        const std::vector<TensorSlot>& slots, const OptimizerState* state) {
  check_values(model, plan);
  std::vector<OutputTensor> outputs;
  outputs.reserve(slots.size());
  for (const TensorSlot& slot : slots) {
    const Checkpoint::Entry source = model.checkpoint.at(source_name(plan, slot));
    io::TensorInfo info = tensor_info(slot.name, source.info->dtype, slot.shape);
    const bool is_child = slot.expert >= 0 && slot.expert < plan.experts_after;
    if (families::has_rows(slot.role())) {
      outputs.push_back(grown_rows(model, plan, slot, std::move(info), state));
    } else if (slot.rule->layout.stacked || is_child) {
      outputs.push_back(grown_experts(model, plan, slot, std::move(info), source, state));
    } else {
      outputs.push_back(copied_tensor(std::move(info), source));
    }
  }
  return outputs;
}

}  // namespace coppice::upcycle
