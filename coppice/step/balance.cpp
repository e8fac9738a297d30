#include "coppice/step/balance.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <span>

#include "coppice/base/check.h"
#include "coppice/nn/host.h"

namespace coppice::step {
namespace {

/// The highest bias among each expert's lineage (experts with the same parent), [E].
std::vector<float> highest_of_lineage(std::span<const float> bias, std::span<const uint32_t> parents) {
  COPPICE_CHECK(bias.size() == parents.size());
  std::map<uint32_t, float> highest;
  for (size_t e = 0; e < bias.size(); ++e) {
    const auto [found, is_new] = highest.emplace(parents[e], bias[e]);
    if (!is_new) found->second = std::max(found->second, bias[e]);
  }
  std::vector<float> out;
  for (const uint32_t parent : parents) out.push_back(highest.at(parent));
  return out;
}

}  // namespace

std::string_view balance_name(BalanceKind kind) {
  switch (kind) {
    case BalanceKind::kLossFree: return "loss_free";
    case BalanceKind::kAux: return "aux";
    case BalanceKind::kNone: return "none";
  }
  COPPICE_CHECK(false, "unknown balance kind");
}

BalanceKind balance_kind(std::string_view name, const families::ModelConfig& config) {
  const bool has_bias = config.is_moe() && config.routing.has_selection_bias;
  if (name == "none") return BalanceKind::kNone;
  if (name == "auto") {
    if (!config.is_moe()) return BalanceKind::kNone;
    return has_bias && config.family->selection_bias_stays_f32 ? BalanceKind::kLossFree : BalanceKind::kAux;
  }
  if (name != "loss_free" && name != "aux") {
    throw Error(ErrorCode::kUsage, cat("balance.kind: '", name, "' is unknown",
                                       suggestion(name, std::vector<std::string>{"auto", "loss_free", "aux", "none"})));
  }
  if (!config.is_moe()) {
    throw Error(ErrorCode::kUsage, cat("balance.kind: '", name, "' for a ", config.family->model_type,
                                       " model, which has no experts (use auto or none)"));
  }
  if (name == "loss_free" && !has_bias) {
    throw Error(ErrorCode::kUsage, cat("balance.kind: 'loss_free' requires a selection bias, which ",
                                       config.family->model_type, " does not have (use aux)"));
  }
  return name == "aux" ? BalanceKind::kAux : BalanceKind::kLossFree;
}

nn::BalanceForm balance_form(std::string_view name) {
  if (name == "per_layer") return nn::BalanceForm::kPerLayer;
  if (name == "transformers") return nn::BalanceForm::kTransformers;
  throw Error(ErrorCode::kUsage, cat("balance.form: '", name, "' is unknown",
                                     suggestion(name, std::vector<std::string>{"per_layer", "transformers"})));
}

double aux_coefficient(const std::optional<double>& given, const families::ModelConfig& config) {
  return given ? *given : config.aux_loss_coef.value_or(kAuxCoefficient);
}

void update_selection_bias(const at::Tensor& bias_E, const at::Tensor& count_N, const at::Tensor& group_E, double rate,
                           bool recentre) {
  COPPICE_CHECK(bias_E.scalar_type() == at::kFloat && count_N.dim() == 1 && count_N.scalar_type() == at::kLong);
  COPPICE_CHECK(bias_E.numel() == (group_E.defined() ? group_E.numel() : count_N.numel()));
  // In integers, so that an even load gives exactly 0.
  const auto lacking_N = count_N.sum() - count_N * count_N.numel();
  const auto sign_E = (group_E.defined() ? lacking_N.index_select(0, group_E) : lacking_N).sign();
  bias_E.add_(sign_E.to(at::kFloat) * static_cast<double>(static_cast<float>(rate)));
  if (!recentre) return;
  const auto bias_in_f64 = bias_E.to(at::kDouble);
  // One after another, so that the bits do not depend on the processor.
  const auto sum = bias_in_f64.cumsum(0).select(0, -1);
  bias_E.copy_(bias_in_f64 - sum / static_cast<double>(bias_E.numel()));
}

std::vector<double> depths_below_lineage(const at::Tensor& bias_E, std::span<const uint32_t> parents) {
  const auto bias = nn::to_host<float>(bias_E);
  const auto highest = highest_of_lineage(bias, parents);
  std::vector<double> out;
  for (size_t e = 0; e < bias.size(); ++e)
    out.push_back(static_cast<double>(highest[e]) - static_cast<double>(bias[e]));
  return out;
}

void wake(const at::Tensor& bias_E, const at::Tensor& parent_E, int64_t num_lineages, int64_t steps_left) {
  COPPICE_CHECK(steps_left >= 1 && bias_E.sizes() == parent_E.sizes());
  const auto highest_E = at::zeros({num_lineages}, bias_E.options())
                             .scatter_reduce_(0, parent_E, bias_E, "amax", /*include_self=*/false)
                             .index_select(0, parent_E);
  bias_E.copy_(steps_left == 1 ? highest_E : bias_E + (highest_E - bias_E) / static_cast<double>(steps_left));
}

}  // namespace coppice::step
