#include "coppice/step/balance.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "coppice/base/check.h"

namespace coppice::step {
namespace {

std::span<float> bias_of(const at::Tensor& bias_E) {
  COPPICE_CHECK(bias_E.scalar_type() == at::kFloat && bias_E.is_contiguous());
  return {bias_E.mutable_data_ptr<float>(), static_cast<size_t>(bias_E.numel())};
}

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

std::span<const int64_t> counts_of(const at::Tensor& count_E) {
  COPPICE_CHECK(count_E.dim() == 1 && count_E.is_contiguous() && count_E.scalar_type() == at::kLong);
  return {count_E.const_data_ptr<int64_t>(), static_cast<size_t>(count_E.numel())};
}

void recentre_values(std::span<float> bias) {
  const double mean = std::accumulate(bias.begin(), bias.end(), 0.0) / static_cast<double>(bias.size());
  for (float& b : bias) b = static_cast<float>(static_cast<double>(b) - mean);
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

void update_selection_bias(const at::Tensor& bias_E, const at::Tensor& count_N, std::span<const uint32_t> group_of,
                           double rate, bool recentre) {
  const auto counts = counts_of(count_N);
  const std::span<float> bias = bias_of(bias_E);
  COPPICE_CHECK(bias.size() == (group_of.empty() ? counts.size() : group_of.size()));
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  for (size_t e = 0; e < bias.size(); ++e) {
    const int64_t count = counts[group_of.empty() ? e : group_of[e]];
    const int64_t excess =
        count * static_cast<int64_t>(counts.size()) - total;  // in integers, so that an even load gives exactly 0
    const int sign = (excess < 0) - (excess > 0);
    bias[e] += static_cast<float>(rate) * static_cast<float>(sign);
  }
  if (recentre) recentre_values(bias);
}

std::vector<double> depths_below_lineage(const at::Tensor& bias_E, std::span<const uint32_t> parents) {
  const std::span<const float> bias = bias_of(bias_E);
  const auto highest = highest_of_lineage(bias, parents);
  std::vector<double> out;
  for (size_t e = 0; e < bias.size(); ++e)
    out.push_back(static_cast<double>(highest[e]) - static_cast<double>(bias[e]));
  return out;
}

void wake(const at::Tensor& bias_E, std::span<const uint32_t> parents, int64_t steps_left) {
  COPPICE_CHECK(steps_left >= 1);
  const std::span<float> bias = bias_of(bias_E);
  const auto highest = highest_of_lineage(bias, parents);
  for (size_t e = 0; e < bias.size(); ++e) {
    const float lacking = highest[e] - bias[e];
    bias[e] = steps_left == 1 ? highest[e] : bias[e] + lacking / static_cast<float>(steps_left);
  }
}

}  // namespace coppice::step
