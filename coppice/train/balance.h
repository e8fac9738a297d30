#pragma once

// Keeping the experts evenly loaded. E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string_view>

#include "coppice/families/model_config.h"

namespace coppice::train {

enum class BalanceKind { kLossFree, kAux, kNone };
std::string_view balance_name(BalanceKind kind);

/// What `balance.kind` means for this model; `auto` is loss-free where the family has a selection bias that stays in
/// f32 wherever the model is loaded, else the auxiliary loss.
///
/// Throws   Error{kUsage}: an unknown name (with the nearest); loss_free without a selection bias; a balancing loss
///          without experts.
BalanceKind balance_kind(std::string_view name, const families::ModelConfig& config);

/// Moves each expert's selection bias by `rate` towards even load: b += rate * sign(mean count - count).
///
/// `group_of` empty: counts are of experts; else of groups, and an expert moves with its own (lineages).
/// Shapes   bias_E f32, changed in place; count_N int64: (token, slot) pairs of the whole batch; group_of [E], below N.
/// Source   Wang et al., arXiv:2408.15664. `recentre` then subtracts the mean of the biases, which no choice depends
///          on.
void update_selection_bias(const at::Tensor& bias_E, const at::Tensor& count_N, std::span<const uint32_t> group_of,
                           double rate, bool recentre);

}  // namespace coppice::train
