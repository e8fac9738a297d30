#include "coppice/score/calibration.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/score/expert_sums.h"

// B sequences of a forward pass, S positions, E experts.

namespace coppice::score {
namespace {

using nn::Parameter;

constexpr int64_t kSequencesAPass = 8;

std::vector<double> zeros(int64_t experts) { return std::vector<double>(static_cast<size_t>(experts), 0.0); }

template <class T>
void add(std::vector<double>& sum, const at::Tensor& values_E) {
  const T* values = values_E.const_data_ptr<T>();
  for (size_t e = 0; e < sum.size(); ++e) sum[e] += static_cast<double>(values[e]);
}

}  // namespace

void BatchSums::add(const std::vector<double>& batch) {
  sum.resize(batch.size());
  sum_sq.resize(batch.size());
  for (size_t e = 0; e < batch.size(); ++e) {
    sum[e] += batch[e];
    sum_sq[e] += batch[e] * batch[e];
  }
}

Calibration::Calibration(nn::Decoder& model, const data::Sampler& sampler, int64_t windows_a_batch)
    : model_(model), sampler_(sampler), windows_(windows_a_batch) {
  for (Parameter& p : model_.parameters()) {
    const bool scored = p.is_experts() && !families::is_bias(p.role);  // biases say little of an expert
    p.value.set_requires_grad(scored);
    if (!scored) continue;
    LayerSums& layer = layers_[p.layer];
    PartGradients& part = p.role == families::Role::kExpertGate ? layer.fc1 : layer.fc2;
    part = {&p, at::zeros_like(p.master), at::zeros_like(p.master), {}};
  }
}

void Calibration::run_batch(uint64_t index) {
  const int64_t experts = model_.config().num_experts;
  for (auto& [l, layer] : layers_) {
    layer.fc1.batch.zero_();
    layer.fc2.batch.zero_();
    pairs_[l] = mass_[l] = zeros(experts);
  }
  const uint64_t first = index * static_cast<uint64_t>(windows_);
  for (int64_t begin = 0; begin < windows_; begin += kSequencesAPass) {
    run_pass(first + static_cast<uint64_t>(begin), std::min(kSequencesAPass, windows_ - begin));
  }
  const at::NoGradGuard no_grad;
  for (auto& [l, layer] : layers_) {
    for (PartGradients* part : {&layer.fc1, &layer.fc2}) {
      part->total.add_(part->batch);
      part->squares.add(expert_dot(part->batch, part->batch));
    }
    const auto all = static_cast<double>(windows_ * sampler_.sequence_length() * model_.config().top_k);
    for (double& pairs : pairs_[l]) pairs /= all;
    layer.load.add(pairs_[l]);
    layer.gate_mass.add(mass_[l]);
  }
}

void Calibration::run_pass(uint64_t first_sample, int64_t size) {
  const int64_t length = sampler_.sequence_length();
  const at::Tensor tokens_BS = at::empty({size, length}, at::kLong), target_BS = at::empty({size, length}, at::kLong);
  for (int64_t b = 0; b < size; ++b) {
    const auto row = [&](const at::Tensor& t) {
      return std::span(t.mutable_data_ptr<int64_t>() + b * length, static_cast<size_t>(length));
    };
    sampler_.read(first_sample + static_cast<uint64_t>(b), row(tokens_BS), row(target_BS));
  }
  const nn::LossOutput out = model_.loss(tokens_BS, target_BS, {});
  if (!std::isfinite(out.token_loss)) {
    throw Error(ErrorCode::kNonFinite, cat("score: the loss over the calibration tokens is ", out.token_loss,
                                           "; wanted a finite one (check the model with `coppice eval`)"));
  }
  (out.loss * (static_cast<double>(size) / static_cast<double>(windows_))).backward();
  take_gradients();
  for (const auto& routing : out.routing) {
    add<int64_t>(pairs_.at(routing.layer), routing.count_E);
    add<double>(mass_.at(routing.layer), routing.gate_mass_E);
  }
}

void Calibration::take_gradients() {
  const at::NoGradGuard no_grad;
  for (auto& [l, layer] : layers_) {
    for (PartGradients* part : {&layer.fc1, &layer.fc2}) {
      at::Tensor value = part->parameter->value;
      part->batch.add_(value.grad());
      value.mutable_grad().reset();
    }
  }
}

}  // namespace coppice::score
