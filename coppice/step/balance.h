#pragma once

// Keeping the experts evenly loaded. E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/families/model_config.h"
#include "coppice/nn/router.h"

namespace coppice::step {

enum class BalanceKind { kLossFree, kAux, kNone };
std::string_view balance_name(BalanceKind kind);

/// What `balance.kind` means for this model; `auto` is loss-free where the family has a selection bias that stays in
/// f32 wherever the model is loaded, else the auxiliary loss.
///
/// Throws   Error{kUsage}: an unknown name (with the nearest); loss_free without a selection bias; a balancing loss
///          without experts.
BalanceKind balance_kind(std::string_view name, const families::ModelConfig& config);

/// per_layer or transformers (docs/training.md).
///
/// Throws   Error{kUsage}: an unknown name (with the nearest).
nn::BalanceForm balance_form(std::string_view name);

/// Coefficient of the auxiliary loss of a model that neither names one nor is of a family that has one, and of a model
/// from nothing.
inline constexpr double kAuxCoefficient = 1e-2;
/// `given`, or else that of the model's own configuration (router_aux_loss_coef, aux_loss_alpha), or else
/// kAuxCoefficient.
double aux_coefficient(const std::optional<double>& given, const families::ModelConfig& config);

/// Moves each expert's selection bias by `rate` towards even load: b += rate * sign(mean count - count).
///
/// `group_of` empty: counts are of experts; else of groups, and an expert moves with its own (lineages).
/// Shapes   bias_E f32, changed in place; count_N int64: (token, slot) pairs of the whole batch; group_of [E], below N.
/// Source   Wang et al., arXiv:2408.15664. `recentre` then subtracts the mean of the biases, which no choice depends
///          on.
void update_selection_bias(const at::Tensor& bias_E, const at::Tensor& count_N, std::span<const uint32_t> group_of,
                           double rate, bool recentre);

/// By how much each expert's selection bias lies below the highest of its lineage: what keeps a dormant copy asleep.
std::vector<double> depths_below_lineage(const at::Tensor& bias_E, std::span<const uint32_t> parents);

/// Copies that a growth put to sleep, in the steps in which they wake.
///
/// Meanwhile balancing is by lineage: a copy without a token says nothing of its parent's load, and parents are
/// compared with each other as before the growth.
struct Waking {
  std::map<int64_t, std::vector<uint32_t>> parents;  ///< by MoE layer
  int64_t num_lineages = 0;
  int64_t steps_left = 0;  ///< of them, the present one included
};

/// Raises every expert's selection bias towards the highest of its lineage, by 1 / `steps_left` of what it lacks: a
/// straight line that ends there.
void wake(const at::Tensor& bias_E, std::span<const uint32_t> parents, int64_t steps_left);

}  // namespace coppice::step
