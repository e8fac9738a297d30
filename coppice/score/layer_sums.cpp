#include "coppice/score/layer_sums.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "coppice/dist/world.h"
#include "coppice/kernels/sums.h"
#include "coppice/nn/host.h"

namespace coppice::score {
namespace {

/// sum[index[i]] += value[i] for each i in turn: the same bits again on any device (index_add_ has no order on a GPU).
void add_in_order(at::Tensor& sum, const at::Tensor& index, const at::Tensor& value) {
  sum.index_put_({index.flatten()}, value.flatten(), /*accumulate=*/true);
}

/// The effective number of experts that share each token, f64 [T]: all K if the gates are equal, 1 if one gate has all
/// the weight.
at::Tensor experts_in_effect(const at::Tensor& gate_TK) {
  auto sum_T = at::zeros({gate_TK.size(0)}, gate_TK.options()), squares_T = at::zeros_like(sum_T);
  for (const at::Tensor& gate_T : gate_TK.unbind(1)) {
    sum_T += gate_T;
    squares_T += gate_T * gate_T;
  }
  return at::where(squares_T > 0, sum_T * sum_T / squares_T, 1.0);
}

}  // namespace

bool is_scored(const nn::Parameter& parameter) { return parameter.is_experts() && !families::is_bias(parameter.role); }

void BatchSums::add(const at::Tensor& batch) {
  if (!sum.defined()) sum = at::zeros_like(batch), sum_sq = at::zeros_like(batch);
  sum += batch;
  sum_sq += batch * batch;
}

LinearSums::LinearSums(const nn::Parameter& parameter, bool with_squares, const nn::Division* division)
    : parameter_(parameter), total_(at::zeros_like(parameter.master)), division_(division) {
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
  if (division_ && division_->num_ranks() > 1) division_->world->same_experts().all_reduce(gradient).wait();
  total_.add_(gradient);
  if (squares_.defined()) squares_.addcmul_(gradient, gradient);
  squared_norms_.add(kernels::expert_dot(gradient, gradient));
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

RoutingSums::RoutingSums(int64_t experts, int64_t top_k, at::Device device, const nn::Division* division)
    : top_k_(top_k), division_(division) {
  const auto f64 = at::TensorOptions(at::kDouble).device(device);
  for (auto* sums : {&pairs_E_, &mass_E_, &change_E_}) *sums = at::zeros({experts}, f64);
  for (auto* sum : {&output_sq_, &effective_}) *sum = at::zeros({1}, f64);
}

void RoutingSums::add_pass(const nn::LayerRouting& routing) {
  const auto gate_TK = routing.gate_TK.to(at::kDouble), sq_TK = routing.pair_sq_TK.to(at::kDouble);
  pairs_E_ += routing.count_E;
  mass_E_ += routing.gate_mass_E;
  output_sq_ += routing.output_sq;
  add_in_order(change_E_, routing.index_TK, gate_TK * gate_TK * sq_TK);
  const auto effective_T = experts_in_effect(gate_TK);
  add_in_order(effective_, at::zeros_like(effective_T, at::kLong), effective_T);
  tokens_ += gate_TK.size(0);
}

void RoutingSums::end_batch() {
  if (division_ && division_->num_ranks() > 1) {
    const auto sums = at::cat({pairs_E_, mass_E_, change_E_, output_sq_, effective_});
    division_->world->all().all_reduce(sums).wait();
    division_->sum_over_ranks({&tokens_, 1});
    int64_t begin = 0;
    for (auto* sum : {&pairs_E_, &mass_E_, &change_E_, &output_sq_, &effective_}) {
      sum->copy_(sums.narrow(0, begin, sum->numel()));
      begin += sum->numel();
    }
  }
  const auto tokens = static_cast<double>(tokens_);
  load.add(pairs_E_ / (tokens * static_cast<double>(top_k_)));
  gate_mass.add(mass_E_);
  output_error.add(at::where(output_sq_ > 0, change_E_ / output_sq_, 0.0));
  gate_concentration.add(effective_ / tokens);
  for (auto* sum : {&pairs_E_, &mass_E_, &change_E_, &output_sq_, &effective_}) sum->zero_();
  tokens_ = 0;
}

LayerSums::LayerSums(const families::ModelConfig& config, const nn::Parameter& fc1, const nn::Parameter& fc2,
                     bool has_moments, const nn::Division* division)
    : fc1_(fc1, !has_moments, division),
      fc2_(fc2, !has_moments, division),
      routing_(config.num_experts, config.top_k, fc1.master.device(), division),
      experts_(config.num_experts),
      division_(division) {}

void LayerSums::end_pass(const nn::LayerRouting& routing, bool counts) {
  fc1_.end_pass();
  fc2_.end_pass();
  if (counts) routing_.add_pass(routing);
}

void LayerSums::end_batch() {
  fc1_.end_batch();
  fc2_.end_batch();
  routing_.end_batch();
}

void LayerSums::add_to(plan::Scores& scores, int64_t layer, const SecondMoments& moments) const {
  add_linear(scores, &plan::MetricScores::fc1, layer, fc1_, moments);
  add_linear(scores, &plan::MetricScores::fc2, layer, fc2_, moments);
  const auto& concentration = routing_.gate_concentration;
  const auto sums = nn::to_host<double>(at::cat({concentration.sum, concentration.sum_sq}));
  scores.gate_concentration.sum[layer] = sums[0];
  scores.gate_concentration.sum_sq[layer] = sums[1];
}

namespace {

/// Rows of all experts, f64 [N, E], from those of this rank's experts.
at::Tensor of_all_experts(const at::Tensor& own_NE, const nn::Parameter& parameter, int64_t experts,
                          const nn::Division* division) {
  if (own_NE.size(1) == experts) return own_NE;
  const auto own = nn::from_host<int64_t>(parameter.experts, {std::ssize(parameter.experts)}, own_NE.device());
  const auto all_NE = at::zeros({own_NE.size(0), experts}, own_NE.options()).index_copy_(1, own, own_NE);
  division->world->experts().all_reduce(all_NE).wait();
  return all_NE;
}

/// Tensors f64 [E] on the host, for which a device is waited for once.
template <size_t N>
std::array<std::vector<double>, N> on_host(const at::Tensor (&rows)[N]) {
  const auto values = nn::to_host<double>(at::stack(rows));
  const auto size = static_cast<ptrdiff_t>(values.size() / N);
  std::array<std::vector<double>, N> out;
  auto begin = values.begin();
  for (auto& row : out) row.assign(std::exchange(begin, begin + size), begin);
  return out;
}

/// A metric with one value per batch. It is stored as sums over batches, so that runs can be merged.
struct BatchMetric {
  std::string_view name;
  const std::vector<double>&sum, &sum_sq;
};

}  // namespace

void LayerSums::add_linear(plan::Scores& scores, plan::MetricSums plan::MetricScores::* which, int64_t layer,
                           const LinearSums& linear, const SecondMoments& moments) const {
  const auto batches = static_cast<double>(scores.batches);
  const at::Tensor mean = linear.mean_gradient(scores.batches), squares = linear.mean_squared_gradient(scores.batches);
  const at::Tensor master = linear.parameter().master.detach();
  const at::Tensor moment =
      moments ? moments(linear.parameter()).to(master.device()) : kernels::expert_dot(squares, squares);
  const auto& norms = linear.squared_norms();
  const at::Tensor of_matrices =
      of_all_experts(at::stack({kernels::expert_dot(master, master), kernels::expert_dot(mean, mean),
                                kernels::expert_dot(master, mean), moment, norms.sum, norms.sum_sq}),
                     linear.parameter(), experts_, division_);
  const auto [weight_sq, grad_sq, both, moment_sq, norm, norm_sq, load, load_sq, mass, mass_sq, error, error_sq] =
      on_host({of_matrices[0], of_matrices[1], of_matrices[2], of_matrices[3], of_matrices[4], of_matrices[5],
               routing_.load.sum, routing_.load.sum_sq, routing_.gate_mass.sum, routing_.gate_mass.sum_sq,
               routing_.output_error.sum, routing_.output_error.sum_sq});
  const std::array<BatchMetric, 4> by_batch = {{{"batch_fisher", norm, norm_sq},
                                                {"load", load, load_sq},
                                                {"gate_mass", mass, mass_sq},
                                                {"output_error", error, error_sq}}};
  for (size_t e = 0; e < weight_sq.size(); ++e) {
    const plan::UtilityInputs in{.weight_sq = weight_sq[e],
                                 .grad_sq = grad_sq[e],
                                 .weight_grad = both[e],
                                 .batch_grad_sq = norm[e],
                                 .second_moment_sq = moment_sq[e],
                                 .batches = scores.batches,
                                 .load = load[e] / batches,
                                 .gate_mass = mass[e],
                                 .output_error = error[e] / batches};
    for (const auto& metric : plan::utility_metrics()) {
      plan::MetricSums& out = scores.metrics[std::string(metric.name)].*which;
      const auto* const sums = std::ranges::find(by_batch, metric.name, &BatchMetric::name);
      const bool is_by_batch = sums != by_batch.end();
      out.sum[layer].push_back(is_by_batch ? sums->sum[e] : metric.value(in));
      if (is_by_batch) out.sum_sq[layer].push_back(sums->sum_sq[e]);
    }
  }
}

SumsByLayer begin_sums(const families::ModelConfig& config, const std::vector<nn::Parameter>& parameters, int64_t first,
                       int64_t last, bool has_moments, const nn::Division* division) {
  SumsByLayer sums;
  for (int64_t layer = first; layer < last; ++layer) {
    if (!config.moe_layer[layer]) continue;
    const auto part = [&](families::Role role) -> const nn::Parameter& {
      return nn::find_parameter(parameters, role, layer);
    };
    sums.emplace_back(layer, LayerSums(config, part(families::Role::kExpertGate), part(families::Role::kExpertDown),
                                       has_moments, division));
  }
  return sums;
}

void end_pass(SumsByLayer& sums, const std::vector<nn::LayerRouting>& routing, bool ends_batch, bool counts) {
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i].second.end_pass(routing[i], counts);
    if (ends_batch) sums[i].second.end_batch();
  }
}

}  // namespace coppice::score
