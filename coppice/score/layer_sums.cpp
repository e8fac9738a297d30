#include "coppice/score/layer_sums.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "coppice/kernels/sums.h"
#include "coppice/nn/host.h"

namespace coppice::score {
namespace {

// The effective number of experts that share a token: all K if the gates are equal, 1 if one gate has all the weight.
double experts_in_effect(const float* gate, int64_t top_k) {
  double sum = 0, squares = 0;
  for (int64_t k = 0; k < top_k; ++k) {
    sum += gate[k];
    squares += static_cast<double>(gate[k]) * gate[k];
  }
  return squares > 0 ? sum * sum / squares : 1.0;
}

}  // namespace

bool is_scored(const nn::Parameter& parameter) { return parameter.is_experts() && !families::is_bias(parameter.role); }

void BatchSums::add(const std::vector<double>& batch) {
  sum.resize(batch.size());
  sum_sq.resize(batch.size());
  for (size_t e = 0; e < batch.size(); ++e) {
    sum[e] += batch[e];
    sum_sq[e] += batch[e] * batch[e];
  }
}

LinearSums::LinearSums(const nn::Parameter& parameter, bool with_squares)
    : parameter_(parameter), total_(at::zeros_like(parameter.master)) {
  if (parameter.value.scalar_type() != at::kFloat) batch_ = at::zeros_like(parameter.master);
  if (with_squares) squares_ = at::zeros_like(parameter.master);
}

// In f32 the gradient itself accumulates the passes of a batch; in bf16 each pass is widened to f32 first.
void LinearSums::end_pass() {
  if (!batch_.defined()) return;
  const at::NoGradGuard no_grad;
  batch_.add_(parameter_.value.grad());
  parameter_.value.mutable_grad().reset();
}

void LinearSums::end_batch() {
  const at::NoGradGuard no_grad;
  const at::Tensor gradient = batch_.defined() ? batch_ : parameter_.value.grad();
  total_.add_(gradient);
  if (squares_.defined()) squares_.addcmul_(gradient, gradient);
  squared_norms_.add(nn::to_host<double>(kernels::expert_dot(gradient, gradient)));
  if (batch_.defined()) {
    batch_.zero_();
  } else {
    parameter_.value.mutable_grad().reset();
  }
}

at::Tensor LinearSums::mean_gradient(uint64_t batches) const {
  const at::NoGradGuard no_grad;
  return total_ / static_cast<double>(batches);
}

at::Tensor LinearSums::mean_squared_gradient(uint64_t batches) const {
  const at::NoGradGuard no_grad;
  return squares_.defined() ? squares_ / static_cast<double>(batches) : at::Tensor();
}

RoutingSums::RoutingSums(int64_t experts, int64_t top_k) : top_k_(top_k) {
  for (auto* sums : {&pairs_, &mass_, &change_}) sums->assign(static_cast<size_t>(experts), 0.0);
}

void RoutingSums::add_pass(const nn::LayerRouting& routing) {
  const auto gate_TK = routing.gate_TK.contiguous(), sq_TK = routing.pair_sq_TK.contiguous();
  const auto* const gate = gate_TK.const_data_ptr<float>();
  const auto* const sq = sq_TK.const_data_ptr<float>();
  const auto* const expert = routing.index_TK.const_data_ptr<int64_t>();
  const auto* const mass = routing.gate_mass_E.const_data_ptr<double>();
  for (int64_t pair = 0; pair < gate_TK.numel(); ++pair) {
    const auto e = static_cast<size_t>(expert[pair]);
    pairs_[e] += 1;
    change_[e] += static_cast<double>(gate[pair]) * gate[pair] * sq[pair];
    if (pair % top_k_ == 0) effective_ += experts_in_effect(gate + pair, top_k_);
  }
  for (size_t e = 0; e < mass_.size(); ++e) mass_[e] += mass[e];
  output_sq_ += nn::number(routing.output_sq);
  tokens_ += gate_TK.size(0);
}

void RoutingSums::end_batch() {
  for (double& pairs : pairs_) pairs /= static_cast<double>(tokens_ * top_k_);
  for (double& change : change_) change = output_sq_ > 0 ? change / output_sq_ : 0.0;
  load.add(pairs_);
  gate_mass.add(mass_);
  output_error.add(change_);
  gate_concentration.add({effective_ / static_cast<double>(tokens_)});
  for (auto* sums : {&pairs_, &mass_, &change_}) std::ranges::fill(*sums, 0.0);
  output_sq_ = effective_ = 0;
  tokens_ = 0;
}

LayerSums::LayerSums(const families::ModelConfig& config, const nn::Parameter& fc1, const nn::Parameter& fc2,
                     bool has_moments)
    : fc1_(fc1, !has_moments), fc2_(fc2, !has_moments), routing_(config.num_experts, config.top_k) {}

void LayerSums::end_pass(const nn::LayerRouting& routing) {
  fc1_.end_pass();
  fc2_.end_pass();
  routing_.add_pass(routing);
}

void LayerSums::end_batch() {
  fc1_.end_batch();
  fc2_.end_batch();
  routing_.end_batch();
}

void LayerSums::add_to(plan::Scores& scores, int64_t layer, const SecondMoments& moments) const {
  add_linear(scores, &plan::MetricScores::fc1, layer, fc1_, moments);
  add_linear(scores, &plan::MetricScores::fc2, layer, fc2_, moments);
  scores.gate_concentration.sum[layer] = routing_.gate_concentration.sum.front();
  scores.gate_concentration.sum_sq[layer] = routing_.gate_concentration.sum_sq.front();
}

void LayerSums::add_linear(plan::Scores& scores, plan::MetricSums plan::MetricScores::* which, int64_t layer,
                           const LinearSums& linear, const SecondMoments& moments) const {
  const auto batches = static_cast<double>(scores.batches);
  // The metrics with one value per batch. They are stored as sums over batches, so that runs can be merged.
  const auto batch_sums = [&](std::string_view metric) -> const BatchSums* {
    if (metric == "batch_fisher") return &linear.squared_norms();
    if (metric == "load") return &routing_.load;
    if (metric == "gate_mass") return &routing_.gate_mass;
    if (metric == "output_error") return &routing_.output_error;
    return nullptr;
  };
  const at::Tensor mean = linear.mean_gradient(scores.batches), squares = linear.mean_squared_gradient(scores.batches);
  const at::Tensor master = linear.parameter().master.detach();
  const auto dot = [](const at::Tensor& a, const at::Tensor& b) {
    return nn::to_host<double>(kernels::expert_dot(a, b));
  };
  const auto weight_sq = dot(master, master), grad_sq = dot(mean, mean), both = dot(master, mean);
  const auto moment_sq = moments ? moments(linear.parameter()) : dot(squares, squares);
  for (size_t e = 0; e < weight_sq.size(); ++e) {
    const plan::UtilityInputs in{.weight_sq = weight_sq[e],
                                 .grad_sq = grad_sq[e],
                                 .weight_grad = both[e],
                                 .batch_grad_sq = linear.squared_norms().sum[e],
                                 .second_moment_sq = moment_sq[e],
                                 .batches = scores.batches,
                                 .load = routing_.load.sum[e] / batches,
                                 .gate_mass = routing_.gate_mass.sum[e],
                                 .output_error = routing_.output_error.sum[e] / batches};
    for (const auto& metric : plan::utility_metrics()) {
      plan::MetricSums& out = scores.metrics[std::string(metric.name)].*which;
      const BatchSums* const sums = batch_sums(metric.name);
      out.sum[layer].push_back(sums ? sums->sum[e] : metric.value(in));
      if (sums) out.sum_sq[layer].push_back(sums->sum_sq[e]);
    }
  }
}

SumsByLayer begin_sums(const families::ModelConfig& config, const std::vector<nn::Parameter>& parameters, int64_t first,
                       int64_t last, bool has_moments) {
  SumsByLayer sums;
  for (int64_t layer = first; layer < last; ++layer) {
    if (!config.moe_layer[layer]) continue;
    const auto part = [&](families::Role role) -> const nn::Parameter& {
      return nn::find_parameter(parameters, role, layer);
    };
    sums.emplace_back(
        layer, LayerSums(config, part(families::Role::kExpertGate), part(families::Role::kExpertDown), has_moments));
  }
  return sums;
}

void end_pass(SumsByLayer& sums, const std::vector<nn::LayerRouting>& routing, bool ends_batch) {
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i].second.end_pass(routing[i]);
    if (ends_batch) sums[i].second.end_batch();
  }
}

}  // namespace coppice::score
