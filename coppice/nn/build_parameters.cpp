#include <ATen/ops/empty.h>

#include <cmath>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/nn/build_parameters_detail.h"

namespace coppice::nn::detail {
namespace {

using families::Role;
using families::TensorSlot;

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

/// Gate and up rows lie in one parameter.
Role parameter_role(Role role) { return role == Role::kExpertUp ? Role::kExpertGate : role; }

std::vector<int64_t> parameter_shape(const families::ModelConfig& config, const TensorSlot& slot) {
  switch (slot.role()) {
    case Role::kExpertGate:
    case Role::kExpertUp: return {config.num_experts, 2 * config.expert_width, config.model_dim};
    case Role::kExpertDown: return {config.num_experts, config.model_dim, config.expert_width};
    default: return slot.shape;
  }
}

int64_t slice_begin(const TensorSlot& slot, int64_t count) {
  switch (slot.role()) {
    case Role::kExpertGate: return 2 * slot.expert * count;
    case Role::kExpertUp: return (2 * slot.expert + 1) * count;
    case Role::kExpertDown: return slot.expert * count;
    default: return 0;
  }
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

}  // namespace

BuiltParameters build_parameters(const families::ModelConfig& config, ComputeDtype dtype, const TensorFill& fill) {
  return build_parameters(config, dtype, fill, families::expected_tensors(config));
}

BuiltParameters build_parameters(const families::ModelConfig& config, ComputeDtype dtype, const TensorFill& fill,
                                 std::vector<TensorSlot> slots) {
  BuiltParameters out;
  std::map<std::pair<Role, int64_t>, size_t> position;
  for (auto& slot : slots) {
    const int64_t count = elements(slot.shape);
    if (count == 0) continue;  // a shared expert of width 0 is on disk, but nothing to train
    if (slot.role() == Role::kSelectionBias) {
      const auto bias = at::empty({count}, at::kFloat);
      fill_checked(fill, slot, {bias.mutable_data_ptr<float>(), static_cast<size_t>(count)});
      out.selection_bias[slot.layer] = bias;
      continue;
    }
    const auto [it, is_new] = position.try_emplace({parameter_role(slot.role()), slot.layer}, out.parameters.size());
    if (is_new) {
      out.parameters.push_back({.role = it->first.first, .layer = slot.layer});
      out.parameters.back().master = at::empty(parameter_shape(config, slot), at::kFloat);
    }
    Parameter& parameter = out.parameters[it->second];
    const int64_t begin = slice_begin(slot, count);
    COPPICE_CHECK(begin + count <= parameter.master.numel(), slot.name);
    fill_checked(fill, slot, {parameter.master.mutable_data_ptr<float>() + begin, static_cast<size_t>(count)});
    parameter.slices.push_back({std::move(slot), begin, count});
  }
  for (Parameter& p : out.parameters) {
    p.value = dtype == ComputeDtype::kBf16 ? p.master.to(at::kBFloat16) : p.master.detach();
    p.value.set_requires_grad(true);
  }
  return out;
}

}  // namespace coppice::nn::detail
