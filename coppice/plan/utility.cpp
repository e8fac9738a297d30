#include "coppice/plan/utility.h"

#include <algorithm>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/find_row.h"
#include "coppice/base/text.h"

namespace coppice::plan {
namespace {

constexpr std::string_view kPaper = "arXiv:2604.19835";
constexpr double kFisherEpsilon = 1e-8;

bool always(const UtilityInputs&) { return true; }
bool has_gradient(const UtilityInputs& in) { return in.batches > 0; }
bool has_second_moment(const UtilityInputs& in) { return in.batches > 0 && in.second_moment_sq >= 0; }
bool has_load(const UtilityInputs& in) { return in.load >= 0; }
bool has_gate_mass(const UtilityInputs& in) { return in.gate_mass >= 0; }
bool has_output_error(const UtilityInputs& in) { return in.output_error >= 0; }

double weight_norm(const UtilityInputs& in) { return std::sqrt(in.weight_sq); }
double gradient_norm(const UtilityInputs& in) { return std::sqrt(in.grad_sq); }
double gradient_squared(const UtilityInputs& in) { return in.grad_sq; }
double weight_grad_product(const UtilityInputs& in) { return std::sqrt(in.weight_sq) * std::sqrt(in.grad_sq); }
double batch_fisher(const UtilityInputs& in) { return in.batch_grad_sq / static_cast<double>(in.batches); }
double taylor(const UtilityInputs& in) { return std::abs(in.weight_grad); }
double approx_fisher(const UtilityInputs& in) { return in.grad_sq / (std::sqrt(in.second_moment_sq) + kFisherEpsilon); }
double load(const UtilityInputs& in) { return in.load; }
double gate_mass(const UtilityInputs& in) { return in.gate_mass; }
double output_error(const UtilityInputs& in) { return in.output_error; }

constexpr UtilityMetric kMetrics[] = {
    {.name = "weight_norm",
     .value = weight_norm,
     .available = always,
     .merges = true,
     .summary = "|w|: norm of the weights",
     .source = kPaper},
    {.name = "weight_grad_product",
     .value = weight_grad_product,
     .available = has_gradient,
     .merges = false,
     .summary = "|w| |g|: saliency",
     .source = kPaper},
    {.name = "gradient_squared",
     .value = gradient_squared,
     .available = has_gradient,
     .merges = false,
     .summary = "|g|^2 of the mean token loss over all batches",
     .source = kPaper},
    {.name = "gradient_norm",
     .value = gradient_norm,
     .available = has_gradient,
     .merges = false,
     .summary = "|g|",
     .source = kPaper},
    {.name = "batch_fisher",
     .value = batch_fisher,
     .available = has_gradient,
     .merges = true,
     .summary = "mean over batches of the squared norm of the batch's gradient",
     .source = "empirical Fisher information, arXiv:1412.1193"},
    {.name = "taylor",
     .value = taylor,
     .available = has_gradient,
     .merges = false,
     .summary = "|sum w g|: first-order change of the loss without the expert",
     .source = "arXiv:1611.06440"},
    {.name = "approx_fisher",
     .value = approx_fisher,
     .available = has_second_moment,
     .merges = false,
     .summary = "|g|^2 / (|v| + 1e-8), v = Adam's second moment",
     .source = kPaper},
    {.name = "load",
     .value = load,
     .available = has_load,
     .merges = true,
     .summary = "share of (token, slot) pairs routed to the expert",
     .source = kPaper},
    {.name = "gate_mass",
     .value = gate_mass,
     .available = has_gate_mass,
     .merges = true,
     .summary = "sum of the expert's gates before routed scaling",
     .source = kPaper},
    {.name = "output_error",
     .value = output_error,
     .available = has_output_error,
     .merges = true,
     .summary = "relative squared change of the layer's routed output if the expert's contribution is removed",
     .source = "expert-wise pruning by output error, arXiv:2402.14800"},
};

double fc1_only(double, double, double fc1, double) { return fc1; }
double fc2_only(double, double, double, double fc2) { return fc2; }
double both_average(double share1, double share2, double, double) { return 0.5 * (share1 + share2); }
double both_product(double share1, double share2, double, double) { return share1 * share2; }
double both_max(double share1, double share2, double, double) { return std::max(share1, share2); }
double both_min(double share1, double share2, double, double) { return std::min(share1, share2); }

constexpr LayerSelection kLayerSelections[] = {
    {.name = "fc1_only", .combine = fc1_only, .summary = "only gate and up"},
    {.name = "fc2_only", .combine = fc2_only, .summary = "only down"},
    {.name = "both_average",
     .combine = both_average,
     .summary = "mean of both shares; a share is the linear layer's score divided by the layer's sum"},
    {.name = "both_product", .combine = both_product, .summary = "product of both shares"},
    {.name = "both_max", .combine = both_max, .summary = "larger of the two shares"},
    {.name = "both_min", .combine = both_min, .summary = "smaller of the two shares"},
};

/// Returns the values of one linear layer, checked.
const std::vector<double>& layer_values(const Scores& scores, const MetricSums& sums, std::string_view metric,
                                        std::string_view linear, int64_t layer) {
  const auto found = sums.sum.find(layer);
  if (found == sums.sum.end()) {
    throw Error(ErrorCode::kFormat,
                cat("scores: '", metric, "' ", linear, " has no layer ", layer, " (score this model again)"));
  }
  const auto& values = found->second;
  if (values.size() != static_cast<size_t>(scores.experts)) {
    throw Error(ErrorCode::kFormat, cat("scores: '", metric, "' ", linear, ", layer ", layer, " has ", values.size(),
                                        " values; wanted ", scores.experts, " (score this model again)"));
  }
  for (size_t e = 0; e < values.size(); ++e) {
    if (std::isfinite(values[e]) && values[e] >= 0) continue;
    throw Error(ErrorCode::kNonFinite,
                cat("scores: '", metric, "' ", linear, ", layer ", layer, ", expert ", e, " is ", values[e],
                    "; scores must be finite and not negative (score the model again)"));
  }
  return values;
}

/// Each value divided by their sum; zeros stay zeros.
std::vector<double> shares(const std::vector<double>& values) {
  const double largest = *std::ranges::max_element(values);
  std::vector<double> out(values.size(), 0.0);
  if (largest == 0) return out;
  double sum = 0;
  for (size_t e = 0; e < values.size(); ++e) sum += out[e] = values[e] / largest;
  for (double& x : out) x /= sum;
  return out;
}

}  // namespace

std::span<const UtilityMetric> utility_metrics() { return kMetrics; }
const UtilityMetric& utility_metric(std::string_view name) { return find_row(utility_metrics(), "metric", name); }
std::span<const LayerSelection> layer_selections() { return kLayerSelections; }
const LayerSelection& layer_selection(std::string_view name) {
  return find_row(layer_selections(), "layer-selection", name);
}

std::vector<double> layer_scores(const Scores& scores, std::string_view metric, std::string_view selection,
                                 int64_t layer) {
  const LayerSelection& rule = layer_selection(selection);
  const auto found = scores.metrics.find(std::string(utility_metric(metric).name));
  if (found == scores.metrics.end()) {
    std::vector<std::string> names;
    for (const auto& [name, unused] : scores.metrics) names.push_back(name);
    throw Error(ErrorCode::kUsage,
                cat("metric: the scores have no '", metric, "'; they have ", join(names),
                    " (choose one of these, or score the model again so that this metric can be computed)"));
  }
  const auto& fc1 = layer_values(scores, found->second.fc1, metric, "fc1", layer);
  const auto& fc2 = layer_values(scores, found->second.fc2, metric, "fc2", layer);
  const auto share1 = shares(fc1), share2 = shares(fc2);
  std::vector<double> out(fc1.size());
  for (size_t e = 0; e < out.size(); ++e) out[e] = rule.combine(share1[e], share2[e], fc1[e], fc2[e]);
  return out;
}

}  // namespace coppice::plan
