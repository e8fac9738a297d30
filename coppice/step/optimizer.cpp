#include "coppice/step/optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "coppice/base/check.h"
#include "coppice/kernels/sums.h"
#include "coppice/step/divided_state.h"

namespace coppice::step {
namespace {

// Elements of a parameter that have the same step count and lie one after another in the whole parameter.
struct Run {
  Interval elements;          // of this rank's parameter
  int64_t first_element = 0;  // their number in the whole parameter
  int64_t age = 0;
};

std::vector<Run> runs_of(const nn::Parameter& p, const ParameterState& state, const Interval& kept) {
  const auto groups = std::ssize(state.steps);
  const int64_t size = groups == 0 ? 0 : p.value.numel() / groups;  // elements of a group
  std::vector<Run> out;
  for (int64_t g = 0; g < groups; ++g) {
    const Interval part = intersection(kept, {g * size, (g + 1) * size});
    if (part.count() == 0) continue;
    const int64_t whole = p.experts.empty() ? g : p.experts[static_cast<size_t>(g)];
    const int64_t first = part.begin + (whole - g) * size, age = state.steps[static_cast<size_t>(g)];
    if (!out.empty() && out.back().age == age && out.back().first_element + out.back().elements.count() == first) {
      out.back().elements.end = part.end;
    } else {
      out.push_back({part, first, age});
    }
  }
  return out;
}

}  // namespace

int64_t num_step_groups(const nn::Parameter& parameter) {
  using families::Role;
  const bool per_expert =
      parameter.is_experts() || parameter.role == Role::kRouter || parameter.role == Role::kRouterBias;
  return per_expert ? parameter.value.size(0) : 1;
}

Optimizer::Optimizer(const std::vector<nn::Parameter>& parameters) { set_to_zero(parameters); }

Optimizer::Optimizer(std::vector<nn::Parameter>& parameters, const nn::Division& division) {
  if (division.world && division.world->size() > 1) {
    divided_ = std::make_shared<DividedState>(parameters, division);
  }
  set_to_zero(parameters);
}

Optimizer::Optimizer(std::vector<nn::Parameter>& parameters, const nn::Division& division,
                     std::vector<ParameterState> states)
    : states_(std::move(states)) {
  COPPICE_CHECK(states_.size() == parameters.size());
  if (division.world && division.world->size() > 1) {
    divided_ = std::make_shared<DividedState>(parameters, division);
  }
}

void Optimizer::set_to_zero(const std::vector<nn::Parameter>& parameters) {
  for (const auto& p : parameters) {
    ParameterState& state = states_.emplace_back();
    state.exp_avg = at::zeros_like(p.master);
    state.exp_avg_sq = at::zeros_like(p.master);
    state.steps.assign(static_cast<size_t>(num_step_groups(p)), 0);
  }
}

void Optimizer::set_moment_dtype(at::ScalarType dtype) {
  for (auto& state : states_) {
    state.exp_avg = state.exp_avg.to(dtype);
    state.exp_avg_sq = state.exp_avg_sq.to(dtype);
  }
}

at::ScalarType Optimizer::moment_dtype() const {
  return states_.empty() ? at::kFloat : states_.front().exp_avg.scalar_type();
}

Interval Optimizer::kept(const std::vector<nn::Parameter>& parameters, size_t i) const {
  return divided_ ? divided_->layout().kept(i) : Interval{0, parameters[i].value.numel()};
}

void Optimizer::clear() {
  for (auto& state : states_) state.grad.reset();
  if (divided_) divided_->begin_batch();
}

void Optimizer::begin_last_pass() {
  if (divided_) divided_->begin_last_pass();
}

void Optimizer::wait_for_values(int64_t layer) {
  if (divided_) divided_->wait_for_values(layer);
}

uint64_t Optimizer::bytes_to_gather() const { return divided_ ? divided_->bytes_to_gather() : 0; }

void Optimizer::accumulate(const std::vector<nn::Parameter>& parameters) {
  COPPICE_CHECK(parameters.size() == states_.size());
  if (divided_) return;  // the backward pass did it
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters.size(); ++i) {
    at::Tensor value = parameters[i].value;
    const at::Tensor grad = value.grad();
    value.mutable_grad().reset();
    if (!grad.defined()) continue;
    ParameterState& state = states_[i];
    if (!state.grad.defined()) {
      state.grad = grad.contiguous();
      continue;
    }
    if (!state.sum.defined()) state.sum = at::empty_like(parameters[i].master);
    if (!state.grad.is_same(state.sum)) state.sum.copy_(state.grad);
    state.grad = state.sum.add_(grad);
  }
}

void Optimizer::finish_gradients() {
  if (!divided_) return;
  divided_->finish_batch();
  for (size_t i = 0; i < states_.size(); ++i) states_[i].grad = divided_->gradient(i);
}

at::Tensor Optimizer::sum_of_squares() const {
  std::vector<at::Tensor> gradients;
  for (const auto& state : states_) {
    if (state.grad.defined() && state.grad.numel() > 0) gradients.push_back(state.grad);
  }
  return gradients.empty() ? at::zeros({}, at::kDouble) : kernels::sum_of_squares(gradients);
}

void Optimizer::step(std::vector<nn::Parameter>& parameters, const kernels::AdamwSettings& settings, double norm,
                     double clip) {
  COPPICE_CHECK(parameters.size() == states_.size());
  const at::NoGradGuard no_grad;
  const double scale = clip > 0 && norm > clip ? clip / norm : 1.0;
  std::vector<kernels::AdamwPart> parts;
  parts.reserve(parameters.size());
  for (size_t i = 0; i < parameters.size(); ++i) {
    const nn::Parameter& p = parameters[i];
    ParameterState& state = states_[i];
    if (p.master.numel() == 0) continue;  // a shared expert of width 0, or nothing of it is kept here
    if (!state.grad.defined())
      state.grad = at::zeros_like(p.master);  // decay and moments continue with a zero gradient
    const bool separate = !p.value.is_alias_of(p.master);
    const Interval own = kept(parameters, i);
    const at::Tensor value = !separate ? at::Tensor() : divided_ ? divided_->kept_values(i) : p.value;
    for (const Run& run : runs_of(p, state, own)) {
      const bool is_all = !divided_ && run.elements == own;
      const auto part = [&](const at::Tensor& t) {
        return is_all ? t : t.detach().view({-1}).narrow(0, run.elements.begin - own.begin, run.elements.count());
      };
      parts.push_back({.master = part(p.master),
                       .exp_avg = part(state.exp_avg),
                       .exp_avg_sq = part(state.exp_avg_sq),
                       .grad = part(state.grad),
                       .value = separate ? part(value) : at::Tensor(),
                       .step = run.age + 1,
                       .decays = p.decays(),
                       .first_element = run.first_element});
    }
  }
  is_torn_ = true;
  kernels::adamw_step(parts, scale, settings);
  for (auto& state : states_) {
    for (int64_t& age : state.steps) ++age;
  }
  if (divided_) divided_->gather_values();
  is_torn_ = false;
}

}  // namespace coppice::step
