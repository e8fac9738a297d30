#include "coppice/step/optimizer.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "coppice/base/check.h"
#include "coppice/kernels/sums.h"

namespace coppice::step {
namespace {

// A view [groups, elements of one group] of the same memory.
at::Tensor by_group(const at::Tensor& tensor, int64_t groups) { return tensor.view({groups, -1}); }

}  // namespace

int64_t num_step_groups(const nn::Parameter& parameter) {
  using families::Role;
  const bool per_expert =
      parameter.is_experts() || parameter.role == Role::kRouter || parameter.role == Role::kRouterBias;
  return per_expert ? parameter.master.size(0) : 1;
}

Optimizer::Optimizer(const std::vector<nn::Parameter>& parameters) {
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

void Optimizer::clear() {
  for (auto& state : states_) state.grad.reset();
}

void Optimizer::accumulate(const std::vector<nn::Parameter>& parameters) {
  COPPICE_CHECK(parameters.size() == states_.size());
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

at::Tensor Optimizer::grad_norm() const {
  std::vector<at::Tensor> gradients;
  for (const auto& state : states_) {
    if (state.grad.defined()) gradients.push_back(state.grad);
  }
  return gradients.empty() ? at::zeros({}, at::kDouble) : kernels::sum_of_squares(gradients).sqrt();
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
    if (p.master.numel() == 0) continue;  // a shared expert of width 0
    if (!state.grad.defined())
      state.grad = at::zeros_like(p.master);  // decay and moments continue with a zero gradient
    const auto groups = static_cast<int64_t>(state.steps.size());
    const bool separate = !p.value.is_alias_of(p.master);
    // Adjacent groups with the same step count are one part.
    for (int64_t begin = 0, end = 0; begin < groups; begin = end) {
      const int64_t age = state.steps[static_cast<size_t>(begin)];
      while (end < groups && state.steps[static_cast<size_t>(end)] == age) ++end;
      const bool whole = begin == 0 && end == groups;
      const auto part = [&](const at::Tensor& t) {
        return whole ? t.detach() : by_group(t.detach(), groups).narrow(0, begin, end - begin);
      };
      parts.push_back({.master = part(p.master),
                       .exp_avg = part(state.exp_avg),
                       .exp_avg_sq = part(state.exp_avg_sq),
                       .grad = part(state.grad),
                       .value = separate ? part(p.value) : at::Tensor(),
                       .step = age + 1,
                       .decays = p.decays(),
                       .first_element = begin * (p.master.numel() / groups)});
    }
  }
  is_torn_ = true;
  kernels::adamw_step(parts, scale, settings);
  for (auto& state : states_) {
    for (int64_t& age : state.steps) ++age;
  }
  is_torn_ = false;
}

}  // namespace coppice::step
