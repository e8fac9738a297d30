#include "coppice/train/growth.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/grow/grow.h"
#include "coppice/grow/grown_weights.h"
#include "coppice/models/expert_layout.h"

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
  return {tensor.mutable_data_ptr<float>() + begin, static_cast<size_t>(count)};
}

bool grows(Role role) { return families::is_expert(role) || families::is_router(role); }

// The model before the expansion, with its optimizer state: the matrices of every expert, and all other tensors.
class Before {
 public:
  struct Place {
    const Parameter* parameter;
    const step::ParameterState* state;
    int64_t begin = 0, rows = 0, cols = 1;

    std::span<const float> of(const at::Tensor& tensor) const { return floats(tensor, begin, rows * cols); }
    MatrixBytes matrix(const at::Tensor& tensor) const {
      return {io::Dtype::kF32, rows, cols, std::as_bytes(of(tensor))};
    }
  };

  Before(const nn::Decoder& model, const step::Optimizer& optimizer) : model_(model) {
    for (size_t i = 0; i < model.parameters().size(); ++i) {
      const Parameter& parameter = model.parameters()[i];
      const step::ParameterState& state = optimizer.states()[i];
      for (const auto& m : parameter.expert_matrices())
        places_[{m.role, parameter.layer, m.expert}] = {&parameter, &state, m.begin, m.rows, m.cols};
      if (parameter.is_experts()) continue;
      const int64_t rows = parameter.master.size(0);
      places_[{parameter.role, parameter.layer, -1}] = {&parameter, &state, 0, rows, parameter.master.numel() / rows};
    }
  }

  const Place& at(Role role, int64_t layer, int64_t expert = -1) const { return places_.at({role, layer, expert}); }
  const nn::Decoder& model() const { return model_; }

 private:
  const nn::Decoder& model_;
  std::map<std::tuple<Role, int64_t, int64_t>, Place> places_;
};

// The master weights of one expert in a tensor of the expanded model, in any layout.
void fill_expert(const Before& before, const GrowthPlan& plan, const TensorSlot& slot, size_t expert,
                 std::span<float> out) {
  const Child& child = plan.layer(slot.layer).children.at(expert);
  std::vector<std::byte> matrix;
  for (const auto& place : models::expert_matrices(slot, plan.experts_after)) {
    const auto masters = [&](uint32_t original) {
      const auto& found = before.at(place.role, slot.layer, original);
      return found.matrix(found.parameter->master);
    };
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

// Master weights of one tensor of the expanded model.
void fill_master(const Before& before, const GrowthPlan& plan, const TensorSlot& slot, std::span<float> out) {
  const bool has_router_bias = before.model().config().routing.has_router_bias;
  const auto bytes = std::as_writable_bytes(out);
  if (slot.role() == Role::kSelectionBias) {
    const at::Tensor& bias = before.model().selection_bias().at(slot.layer);
    const MatrixBytes matrix{io::Dtype::kF32, bias.numel(), 1, std::as_bytes(floats(bias, 0, bias.numel()))};
    grow::grow_router(plan, slot.layer, slot.role(), matrix, bytes, has_router_bias);
    return;
  }
  if (families::is_expert(slot.role())) {
    fill_experts(before, plan, slot, out);
    return;
  }
  const auto& source = before.at(slot.role(), slot.layer);
  if (families::is_router(slot.role())) {
    const MatrixBytes matrix = source.matrix(source.parameter->master);
    grow::grow_router(plan, slot.layer, slot.role(), matrix, bytes, has_router_bias);
  } else {
    std::ranges::copy(source.of(source.parameter->master), out.begin());
  }
}

const at::Tensor& moment_of(const step::ParameterState& state, Moment kind) {
  return kind == Moment::kFirst ? state.exp_avg : state.exp_avg_sq;
}

void fill_expert_moments(const Before& before, const GrowthPlan& plan, const Parameter& parameter, Moment kind,
                         const at::Tensor& out) {
  for (const auto& m : parameter.expert_matrices()) {
    const auto moments = [&](uint32_t expert) {
      const auto& place = before.at(m.role, parameter.layer, expert);
      return place.matrix(moment_of(*place.state, kind));
    };
    const auto weights = [&](uint32_t expert) {
      const auto& place = before.at(m.role, parameter.layer, expert);
      return place.matrix(place.parameter->master);
    };
    const Child& child = plan.layer(parameter.layer).children.at(static_cast<size_t>(m.expert));
    grow::grow_expert_moment(plan, parameter.layer, child, m.role, kind, moments, weights,
                             floats(out, m.begin, m.rows * m.cols));
  }
}

void fill_router_moments(const Before& before, const GrowthPlan& plan, const Parameter& parameter, Moment kind,
                         const at::Tensor& out) {
  const auto& source = before.at(parameter.role, parameter.layer);
  grow::grow_router_moment(plan, parameter.layer, kind, source.of(moment_of(*source.state, kind)), source.cols,
                           floats(out, 0, out.numel()));
}

// Optimizer state of one parameter whose experts grow; `state` has its new sizes.
void fill_state(const Before& before, const GrowthPlan& plan, const Parameter& parameter, step::ParameterState& state) {
  for (const Moment kind : {Moment::kFirst, Moment::kSecond}) {
    const auto fill = parameter.is_experts() ? fill_expert_moments : fill_router_moments;
    fill(before, plan, parameter, kind, moment_of(state, kind));
  }
  const int64_t any = parameter.is_experts() ? 0 : -1;
  const auto& steps = before.at(parameter.role, parameter.layer, any).state->steps;
  const auto& children = plan.layer(parameter.layer).children;
  for (size_t e = 0; e < children.size(); ++e) {
    state.steps[e] = grow::grow_step(plan, children[e], steps[children[e].parent]);
  }
}

}  // namespace

void grow(nn::Decoder& model, step::Optimizer& optimizer, const GrowthPlan& plan) {
  COPPICE_CHECK(model.config().num_experts == plan.experts_before);
  const at::NoGradGuard no_grad;
  const auto moment_dtype = optimizer.moment_dtype();
  optimizer.set_moment_dtype(at::kFloat);  // as in a checkpoint
  const Before before(model, optimizer);
  const auto config = families::read_config(plan::grown_config(model.config(), plan), "growth");
  nn::Decoder grown(config, model.dtype(),
                    [&](const TensorSlot& slot, std::span<float> values) { fill_master(before, plan, slot, values); });
  step::Optimizer grown_optimizer(grown.parameters());
  COPPICE_CHECK(grown.parameters().size() == model.parameters().size());
  for (size_t i = 0; i < grown.parameters().size(); ++i) {
    if (grows(grown.parameters()[i].role)) {
      fill_state(before, plan, grown.parameters()[i], grown_optimizer.states()[i]);
    } else {
      grown.parameters()[i] = model.parameters()[i];
      grown_optimizer.states()[i] = optimizer.states()[i];
    }
  }
  model = std::move(grown);
  optimizer = std::move(grown_optimizer);
  optimizer.set_moment_dtype(moment_dtype);
}

}  // namespace coppice::train
