#include "coppice/train/growth.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <map>
#include <utility>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/grow/grow.h"
#include "coppice/grow/grown_weights.h"
#include "coppice/models/expert_layout.h"
#include "coppice/nn/host.h"
#include "coppice/nn/parameter_builder.h"

namespace coppice::train {
namespace {

using families::Role;
using families::TensorSlot;
using matrix::MatrixBytes;
using methods::Child;
using methods::Moment;
using nn::Parameter;
using plan::GrowthPlan;

std::span<float> floats(const at::Tensor& tensor, int64_t begin, int64_t count) {
  return nn::host_values<float>(tensor).subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
}

bool grows(Role role) { return families::is_expert(role) || families::is_router(role); }

// A parameter before the expansion, with its moments in f32 as in a checkpoint, on the host; on the CPU not copied.
class Before {
 public:
  Before(const Parameter& parameter, const step::ParameterState& state)
      : layer(parameter.layer), steps(state.steps), master_(nn::on_host(parameter.master)) {
    first_ = nn::on_host(state.exp_avg).to(at::kFloat);
    second_ = nn::on_host(state.exp_avg_sq).to(at::kFloat);
    for (const auto& m : parameter.expert_matrices()) places_[{m.role, m.expert}] = {m.begin, m.rows, m.cols};
    if (parameter.is_experts()) return;
    const int64_t rows = master_.size(0);
    places_[{parameter.role, -1}] = {0, rows, master_.numel() / rows};
  }

  const int64_t layer;
  const std::vector<int64_t>& steps;

  MatrixBytes master(Role role, int64_t expert = -1) const { return matrix(master_, role, expert); }
  MatrixBytes moment(Moment kind, Role role, int64_t expert = -1) const {
    return matrix(kind == Moment::kFirst ? first_ : second_, role, expert);
  }
  std::span<const float> router_moment(Moment kind) const {
    return nn::host_values<float>(kind == Moment::kFirst ? first_ : second_);
  }
  int64_t router_columns() const { return places_.begin()->second.cols; }

 private:
  struct Place {
    int64_t begin = 0, rows = 0, cols = 1;
  };
  MatrixBytes matrix(const at::Tensor& tensor, Role role, int64_t expert) const {
    const auto [begin, rows, cols] = places_.at({role, expert});
    return {io::Dtype::kF32, rows, cols, std::as_bytes(floats(tensor, begin, rows * cols))};
  }

  at::Tensor master_, first_, second_;
  std::map<std::pair<Role, int64_t>, Place> places_;
};

// The master weights of one expert in a tensor of the expanded model, in any layout.
void fill_expert(const Before& before, const GrowthPlan& plan, const TensorSlot& slot, size_t expert,
                 std::span<float> out) {
  const Child& child = plan.layer(slot.layer).children.at(expert);
  std::vector<std::byte> matrix;
  for (const auto& place : models::expert_matrices(slot, plan.experts_after)) {
    const auto masters = [&](uint32_t original) { return before.master(place.role, original); };
    matrix.resize(static_cast<size_t>(place.rows * place.cols) * sizeof(float));
    grow::grow_expert(plan, slot.layer, child, place.role, masters, io::Dtype::kF32, matrix);
    models::scatter(place, sizeof(float), matrix, std::as_writable_bytes(out));
  }
}

void fill_experts(const Before& before, const GrowthPlan& plan, const TensorSlot& slot, std::span<float> out) {
  if (!slot.rule->layout.stacked) {
    fill_expert(before, plan, slot, static_cast<size_t>(slot.expert), out);
    return;
  }
  const auto count = static_cast<size_t>(plan.experts_after), size = out.size() / count;
  for (size_t expert = 0; expert < count; ++expert)
    fill_expert(before, plan, slot, expert, out.subspan(expert * size, size));
}

// Master weights of one tensor of the expanded model, which is a part of this parameter.
void fill_master(const Before& before, const GrowthPlan& plan, const TensorSlot& slot, bool has_router_bias,
                 std::span<float> out) {
  if (families::is_expert(slot.role())) return fill_experts(before, plan, slot, out);
  grow::grow_router(plan, slot.layer, slot.role(), before.master(slot.role()), std::as_writable_bytes(out),
                    has_router_bias);
}

void fill_expert_moments(const Before& before, const GrowthPlan& plan, const Parameter& parameter, Moment kind,
                         const at::Tensor& out) {
  for (const auto& m : parameter.expert_matrices()) {
    const auto moments = [&](uint32_t expert) { return before.moment(kind, m.role, expert); };
    const auto weights = [&](uint32_t expert) { return before.master(m.role, expert); };
    const Child& child = plan.layer(parameter.layer).children.at(static_cast<size_t>(m.expert));
    grow::grow_expert_moment(plan, parameter.layer, child, m.role, kind, moments, weights,
                             floats(out, m.begin, m.rows * m.cols));
  }
}

// One moment of the expanded parameter, on its device.
at::Tensor grown_moment(const Before& before, const GrowthPlan& plan, const Parameter& parameter, Moment kind,
                        at::ScalarType dtype) {
  const at::Tensor out = at::empty(parameter.master.sizes(), at::kFloat);
  if (parameter.is_experts()) {
    fill_expert_moments(before, plan, parameter, kind, out);
  } else {
    grow::grow_router_moment(plan, before.layer, kind, before.router_moment(kind), before.router_columns(),
                             nn::host_values<float>(out));
  }
  return nn::to_device(out.to(dtype), parameter.master.device());
}

step::ParameterState grown_state(const Before& before, const GrowthPlan& plan, const Parameter& parameter,
                                 at::ScalarType moment_dtype) {
  step::ParameterState out;
  out.exp_avg = grown_moment(before, plan, parameter, Moment::kFirst, moment_dtype);
  out.exp_avg_sq = grown_moment(before, plan, parameter, Moment::kSecond, moment_dtype);
  for (const Child& child : plan.layer(parameter.layer).children) {
    out.steps.push_back(grow::grow_step(plan, child, before.steps[child.parent]));
  }
  return out;
}

void grow_selection_bias(const GrowthPlan& plan, int64_t layer, bool has_router_bias, at::Tensor& bias_E) {
  const at::Tensor here_E = nn::on_host(bias_E), out = at::empty({plan.experts_after}, at::kFloat);
  const MatrixBytes matrix{io::Dtype::kF32, here_E.numel(), 1, nn::host_bytes(here_E)};
  grow::grow_router(plan, layer, Role::kSelectionBias, matrix, nn::host_bytes(out), has_router_bias);
  bias_E = nn::to_device(out, bias_E.device());
}

}  // namespace

void grow(nn::Decoder& model, step::Optimizer& optimizer, const GrowthPlan& plan) {
  COPPICE_CHECK(model.config().num_experts == plan.experts_before);
  const at::NoGradGuard no_grad;
  const auto moment_dtype = optimizer.moment_dtype();
  const bool has_router_bias = model.config().routing.has_router_bias;
  auto config = families::read_config(plan::grown_config(model.config(), plan), "growth");
  const nn::ParameterBuilder builder(config, model.dtype(), model.device());
  optimizer.clear();
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    Parameter& parameter = model.parameters()[i];
    if (!grows(parameter.role)) continue;
    step::ParameterState& state = optimizer.states()[i];
    const Before before(parameter, state);
    auto grown = builder.build(parameter.role, parameter.layer, [&](const TensorSlot& slot, std::span<float> values) {
      fill_master(before, plan, slot, has_router_bias, values);
    });
    state = grown_state(before, plan, grown, moment_dtype);
    parameter = std::move(grown);
  }
  for (auto& [layer, bias_E] : model.selection_bias()) grow_selection_bias(plan, layer, has_router_bias, bias_E);
  model.set_config(std::move(config));
}

}  // namespace coppice::train
