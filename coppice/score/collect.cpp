#include "coppice/score/collect.h"

#include <ATen/core/grad_mode.h>

#include "coppice/score/expert_sums.h"

namespace coppice::score {
namespace {

// Everything the metrics look at, for each expert.
std::vector<upcycle::UtilityInputs> inputs_of(const PartGradients& part, const LayerSums& layer, uint64_t batches,
                                              const SecondMoments& second_moments) {
  const at::NoGradGuard no_grad;
  const at::Tensor mean = part.total / static_cast<double>(batches);
  const at::Tensor& master = part.parameter->master;
  const auto weight_sq = expert_dot(master, master), grad_sq = expert_dot(mean, mean), both = expert_dot(master, mean);
  const auto moments = second_moments ? second_moments(*part.parameter) : std::vector<double>(weight_sq.size(), -1.0);
  std::vector<upcycle::UtilityInputs> out(weight_sq.size());
  for (size_t e = 0; e < out.size(); ++e) {
    out[e] = {.weight_sq = weight_sq[e],
              .grad_sq = grad_sq[e],
              .weight_grad = both[e],
              .batch_grad_sq = part.squares.sum[e],
              .second_moment_sq = moments[e],
              .batches = batches,
              .load = layer.load.sum[e] / static_cast<double>(batches),
              .gate_mass = layer.gate_mass.sum[e]};
  }
  return out;
}

// The metrics that every batch has a value of its own of: stored as sums over batches, so that runs merge.
const BatchSums* batch_sums(std::string_view metric, const PartGradients& part, const LayerSums& layer) {
  if (metric == "batch_fisher") return &part.squares;
  if (metric == "load") return &layer.load;
  if (metric == "gate_mass") return &layer.gate_mass;
  return nullptr;
}

void add_part(upcycle::Scores& scores, upcycle::MetricPart upcycle::MetricScores::* which, int64_t index,
              const PartGradients& part, const LayerSums& layer, const SecondMoments& moments) {
  const auto inputs = inputs_of(part, layer, scores.batches, moments);
  for (const auto& metric : upcycle::utility_metrics()) {
    if (!metric.available(inputs.front())) continue;
    upcycle::MetricPart& out = scores.metrics[std::string(metric.name)].*which;
    if (const BatchSums* sums = batch_sums(metric.name, part, layer)) {
      out.sum[index] = sums->sum;
      out.sum_sq[index] = sums->sum_sq;
    } else {
      for (const auto& in : inputs) out.sum[index].push_back(metric.value(in));
    }
  }
}

}  // namespace

void collect(const Calibration& calibration, upcycle::Scores& scores, const SecondMoments& moments) {
  for (const auto& [index, layer] : calibration.layers()) {
    add_part(scores, &upcycle::MetricScores::fc1, index, layer.fc1, layer, moments);
    add_part(scores, &upcycle::MetricScores::fc2, index, layer.fc2, layer, moments);
  }
}

}  // namespace coppice::score
