#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/nn/build_parameters_detail.h"
#include "coppice/nn/host.h"

namespace coppice::nn::detail {
using families::Role;

Role parameter_role(Role role) {
  switch (role) {
    case Role::kExpertUp:
    case Role::kExpertGateUp: return Role::kExpertGate;
    case Role::kExpertUpBias:
    case Role::kExpertGateUpBias: return Role::kExpertGateBias;
    default: return role;
  }
}

namespace {

using families::TensorSlot;

int64_t elements(std::span<const int64_t> shape) {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

std::vector<int64_t> parameter_shape(const families::ModelConfig& config, const TensorSlot& slot, int64_t experts) {
  switch (parameter_role(slot.role())) {
    case Role::kExpertGate: return {experts, 2 * config.expert_width, config.model_dim};
    case Role::kExpertDown: return {experts, config.model_dim, config.expert_width};
    case Role::kExpertGateBias: return {experts, 2 * config.expert_width};
    case Role::kExpertDownBias: return {experts, config.model_dim};
    default: return slot.shape;
  }
}

/// The view of an expert parameter whose elements are those of `slot` in order. In memory they are [experts, gate or
/// up, rows, columns]; on disk a tensor has one or all experts, gate, up or both, and rows and columns in either order.
/// In memory are the experts `own`, in rising order.
Parameter::Slice expert_slice(const families::ModelConfig& config, TensorSlot slot, std::span<const int64_t> own) {
  const Role role = slot.role();
  const auto layout = slot.rule->layout;
  const bool is_down = role == Role::kExpertDown || role == Role::kExpertDownBias;
  const bool is_up = role == Role::kExpertUp || role == Role::kExpertUpBias;
  const int64_t rows = is_down ? config.model_dim : config.expert_width;
  const int64_t cols = families::is_bias(role) ? 1 : is_down ? config.expert_width : config.model_dim;
  const int64_t parts = is_down ? 1 : 2, matrix = rows * cols;

  Parameter::Slice slice{std::move(slot), 0, {}, {}};
  const auto add = [&slice](int64_t size, int64_t stride) {
    slice.sizes.push_back(size);
    slice.strides.push_back(stride);
  };
  const auto add_rows = [&] {
    const bool both = role == Role::kExpertGateUp || role == Role::kExpertGateUpBias;
    if (both && !layout.interleaved) add(2, matrix);
    add(rows, cols);
    if (both && layout.interleaved) add(2, matrix);
  };
  if (layout.stacked) {
    add(std::ssize(own), parts * matrix);
  } else {
    const int64_t place = std::ranges::lower_bound(own, slice.slot.expert) - own.begin();
    slice.begin = (parts * place + (is_up ? 1 : 0)) * matrix;
  }
  if (layout.transposed) add(cols, 1);
  add_rows();
  if (!layout.transposed) add(cols, 1);
  return slice;
}

Parameter::Slice whole_slice(TensorSlot slot, const at::Tensor& master) {
  return {std::move(slot), 0, master.sizes().vec(), master.strides().vec()};
}

void fill_checked(const TensorFill& fill, const TensorSlot& slot, std::span<float> values) {
  fill(slot, values);
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    throw Error(ErrorCode::kNonFinite,
                cat("'", slot.name, "': element ", i, " is ", static_cast<double>(values[i]),
                    "; wanted finite weights (the checkpoint is damaged or its training diverged)"));
  }
}

void fill_place(const TensorFill& fill, const TensorSlot& slot, const at::Tensor& place) {
  fill_from_host(place, [&](std::span<float> values) { fill_checked(fill, slot, values); });
}

/// Part by part if this rank has some experts of a stack.
void fill_slice(const families::ModelConfig& config, const TensorFill& fill, const Parameter& parameter,
                const Parameter::Slice& slice) {
  const at::Tensor place = slice.of(parameter.master);
  const bool stacked = parameter.is_experts() && slice.slot.rule->layout.stacked;
  if (!stacked || std::ssize(parameter.experts) == config.num_experts) return fill_place(fill, slice.slot, place);
  TensorSlot part = slice.slot;
  for (size_t i = 0; i < parameter.experts.size(); ++i) {
    part.expert = parameter.experts[i];
    fill_place(fill, part, place[static_cast<int64_t>(i)]);
  }
}

/// Fills master and value with the tensors of `slots` that this rank has.
void fill_parameter(const families::ModelConfig& config, const TensorFill& fill, std::vector<TensorSlot> slots,
                    Parameter& parameter) {
  const bool has_master = parameter.value.scalar_type() != at::kFloat;
  parameter.master = has_master ? at::empty(parameter.value.sizes(), parameter.value.options().dtype(at::kFloat))
                                : parameter.value.detach();
  for (TensorSlot& slot : slots) {
    const bool is_expert = parameter.is_experts();
    if (is_expert && slot.expert >= 0 && !std::ranges::binary_search(parameter.experts, slot.expert))
      continue;  // another rank's
    const int64_t count = elements(slot.shape);
    const bool is_stack = is_expert && slot.rule->layout.stacked;
    auto slice = is_expert ? expert_slice(config, std::move(slot), parameter.experts)
                           : whole_slice(std::move(slot), parameter.master);
    const int64_t held = is_stack ? count / config.num_experts * std::ssize(parameter.experts) : count;
    COPPICE_CHECK(slice.count() == held, slice.slot.name);
    fill_slice(config, fill, parameter, slice);
    parameter.slices.push_back(std::move(slice));
  }
  if (has_master) parameter.value.copy_(parameter.master);
}

}  // namespace

BuiltParameters build_parameters(const families::ModelConfig& config, ComputeDtype dtype, at::Device device,
                                 const TensorFill& fill, const Division& division, std::vector<TensorSlot> slots,
                                 const KeepMasters& keep) {
  const auto f32 = at::TensorOptions().dtype(at::kFloat).device(device);
  const auto computed = f32.dtype(dtype == ComputeDtype::kBf16 ? at::kBFloat16 : at::kFloat);
  BuiltParameters out;
  std::map<std::pair<Role, int64_t>, size_t> position;
  std::vector<std::vector<TensorSlot>> slots_of;  // by parameter
  for (auto& slot : slots) {
    const int64_t count = elements(slot.shape);
    if (count == 0) continue;  // a shared expert of width 0 exists on disk, but has nothing to train
    if (slot.role() == Role::kSelectionBias) {
      fill_place(fill, slot, out.selection_bias[slot.layer] = at::empty({count}, f32));
      continue;
    }
    const auto [it, is_new] = position.try_emplace({parameter_role(slot.role()), slot.layer}, out.parameters.size());
    if (is_new) {
      Parameter& made = out.parameters.emplace_back();
      made.role = it->first.first;
      made.layer = slot.layer;
      if (made.is_experts()) made.experts = division.experts(slot.layer, config.num_experts);
      made.value = at::empty(parameter_shape(config, slot, std::ssize(made.experts)), computed);
      slots_of.emplace_back();
    }
    slots_of[it->second].push_back(std::move(slot));
  }
  std::vector<KeptElements> kept;
  if (keep && dtype == ComputeDtype::kBf16) kept = keep(out.parameters);
  for (size_t i = 0; i < out.parameters.size(); ++i) {
    Parameter& p = out.parameters[i];
    fill_parameter(config, fill, std::move(slots_of[i]), p);
    if (!kept.empty()) p.master = p.master.view({-1}).narrow(0, kept[i].first, kept[i].count).clone();
    p.value.set_requires_grad(true);
  }
  return out;
}

}  // namespace coppice::nn::detail
