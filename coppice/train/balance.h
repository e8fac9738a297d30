#pragma once

// Keeping the experts evenly loaded. E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string_view>

#include "coppice/families/model_config.h"

namespace coppice::train {

enum class BalanceKind { kLossFree, kAux, kNone };
std::string_view balance_name(BalanceKind kind);

/// What `balance.kind` means for this model; `auto` is loss-free where the family has a selection bias, else the
/// auxiliary loss.
///
/// Throws   Error{kUsage}: an unknown name (with the nearest); loss_free without a selection bias; a balancing loss
///          without experts.
BalanceKind balance_kind(std::string_view name, const families::ModelConfig& config);

/// Moves each expert's selection bias by `rate` towards even load: b += rate * sign(mean count - count).
///
/// Shapes   bias_E f32, changed in place; count_E int64: (token, slot) pairs of the whole batch.
/// Source   Wang et al., arXiv:2408.15664. `recentre` then subtracts the mean of the biases, which no choice depends
///          on.
void update_selection_bias(const at::Tensor& bias_E, const at::Tensor& count_E, double rate, bool recentre);

/// Largest load above the even one, as a share of it: max(count) / mean(count) - 1; 0 without tokens.
///
/// Source   MaxVio of arXiv:2408.15664.
double max_violation(const at::Tensor& count_E);

}  // namespace coppice::train
