#pragma once

// Load balancing of experts. E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/families/model_config.h"
#include "coppice/nn/lineage.h"

namespace coppice::step {

enum class BalanceKind { kLossFree, kAux, kNone };
std::string_view balance_name(BalanceKind kind);

/// The kind of balancing that `balance.kind` means for this model. `auto` is loss-free balancing if the family has a
/// selection bias that always stays in f32 when the model is loaded, otherwise the auxiliary loss.
///
/// Throws   Error{kUsage}: an unknown name (with the nearest); loss_free without a selection bias; a balancing loss
///          without experts.
BalanceKind balance_kind(std::string_view name, const families::ModelConfig& config);

/// per_layer or transformers (docs/training.md).
///
/// Throws   Error{kUsage}: an unknown name (with the nearest).
nn::BalanceForm balance_form(std::string_view name);

/// The default coefficient of the auxiliary loss: for new models, and if neither config.json nor the family defines
/// one.
inline constexpr double kAuxCoefficient = 1e-2;
/// `given`, or the coefficient in the model's configuration (router_aux_loss_coef, aux_loss_alpha), or kAuxCoefficient.
double aux_coefficient(const std::optional<double>& given, const families::ModelConfig& config);

/// Moves each expert's selection bias by `rate` towards even load: b += rate * sign(mean count - count).
///
/// If `group_E` is undefined, counts are per expert; otherwise per group (lineage), and all experts of a group move
/// together.
/// Shapes   bias_E f32, changed in place; count_N int64: (token, slot) pairs of the whole batch; group_E int64, below N.
/// Source   Wang et al., arXiv:2408.15664. `recentre` then subtracts the mean of the biases, which does not change any
///          choice.
void update_selection_bias(const at::Tensor& bias_E, const at::Tensor& count_N, const at::Tensor& group_E, double rate,
                           bool recentre);

/// How far each expert's selection bias lies below the highest of its lineage. This depth keeps a dormant copy from
/// being chosen. On a GPU this waits for the device.
std::vector<double> depths_below_lineage(const at::Tensor& bias_E, std::span<const uint32_t> parents);

/// Dormant copies while they wake: their selection biases are raised step by step.
///
/// During these steps balancing compares lineages (a parent with its copies), because a copy without tokens tells
/// nothing about its parent's load.
struct Waking {
  std::shared_ptr<const nn::Lineage> lineage;
  int64_t steps_left = 0;  ///< steps left, including the current one
};

/// Raises every expert's selection bias towards the highest of its lineage by 1 / `steps_left` of the difference, so
/// that it rises linearly and gets there in the last step.
///
/// Shapes   bias_E f32, changed in place; parent_E int64, below `num_lineages`.
void wake(const at::Tensor& bias_E, const at::Tensor& parent_E, int64_t num_lineages, int64_t steps_left);

}  // namespace coppice::step
