#include "coppice/train/growth.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/upcycle/grow.h"
#include "coppice/upcycle/grown_weights.h"

namespace coppice::train {
namespace {

using families::Role;
using families::TensorSlot;
using nn::Parameter;
using upcycle::Child;
using upcycle::GrowthPlan;
using upcycle::MatrixBytes;
using upcycle::MomentKind;

std::span<float> floats(const at::Tensor& tensor, int64_t begin, int64_t count) {
  return {tensor.mutable_data_ptr<float>() + begin, static_cast<size_t>(count)};
}

bool grows(Role role) { return families::is_expert(role) || upcycle::is_router(role); }

// A model before growth, with its optimizer state, by tensor.
class Before {
 public:
  Before(const nn::Decoder& model, const Optimizer& optimizer) : model_(model) {
    for (size_t i = 0; i < model.parameters().size(); ++i) {
      const Parameter& parameter = model.parameters()[i];
      for (const auto& slice : parameter.slices) {
        const TensorSlot& slot = slice.slot;
        places_[{slot.role(), slot.layer, slot.expert}] = {&slice, &parameter, &optimizer.states()[i]};
      }
    }
  }

  struct Place {
    const Parameter::Slice* slice;
    const Parameter* parameter;
    const ParameterState* state;

    std::span<const float> of(const at::Tensor& tensor) const { return floats(tensor, slice->begin, slice->count); }
    MatrixBytes matrix(const at::Tensor& tensor) const {
      const auto& shape = slice->slot.shape;
      return {io::Dtype::kF32, shape[0], shape.size() == 2 ? shape[1] : 1, std::as_bytes(of(tensor))};
    }
  };
  const Place& at(Role role, int64_t layer, int64_t expert) const { return places_.at({role, layer, expert}); }
  // The same tensor, or the parent's.
  const Place& source(const GrowthPlan& plan, const TensorSlot& slot) const {
    if (!families::is_expert(slot.role())) return at(slot.role(), slot.layer, slot.expert);
    return at(slot.role(), slot.layer, upcycle::child_of(plan, slot).parent);
  }
  const nn::Decoder& model() const { return model_; }

 private:
  const nn::Decoder& model_;
  std::map<std::tuple<Role, int64_t, int64_t>, Place> places_;
};

// Master weights of one tensor of the grown model.
void fill_master(const Before& before, const GrowthPlan& plan, const TensorSlot& slot, std::span<float> out) {
  const bool has_router_bias = before.model().config().routing.has_router_bias;
  const auto bytes = std::as_writable_bytes(out);
  if (slot.role() == Role::kSelectionBias) {
    const at::Tensor& bias = before.model().selection_bias().at(slot.layer);
    const MatrixBytes matrix{io::Dtype::kF32, bias.numel(), 1, std::as_bytes(floats(bias, 0, bias.numel()))};
    upcycle::grow_router(plan, slot.layer, slot.role(), matrix, bytes, has_router_bias);
    return;
  }
  const auto& source = before.source(plan, slot);
  if (upcycle::is_router(slot.role())) {
    const MatrixBytes matrix = source.matrix(source.parameter->master);
    upcycle::grow_router(plan, slot.layer, slot.role(), matrix, bytes, has_router_bias);
  } else if (families::is_expert(slot.role()) && !upcycle::is_plain_copy(plan, upcycle::child_of(plan, slot))) {
    const auto masters = [&](uint32_t expert) {
      const auto& place = before.at(slot.role(), slot.layer, expert);
      return place.matrix(place.parameter->master);
    };
    upcycle::grow_expert(plan, slot.layer, upcycle::child_of(plan, slot), slot.role(), masters, io::Dtype::kF32, bytes);
  } else {
    std::ranges::copy(source.of(source.parameter->master), out.begin());
  }
}

void fill_expert_moment(const Before& before, const GrowthPlan& plan, const TensorSlot& slot, MomentKind kind,
                        std::span<float> out) {
  const auto moments = [&](uint32_t expert) {
    const auto& place = before.at(slot.role(), slot.layer, expert);
    return place.matrix(kind == MomentKind::kExpAvg ? place.state->exp_avg : place.state->exp_avg_sq);
  };
  const auto weights = [&](uint32_t expert) {
    const auto& place = before.at(slot.role(), slot.layer, expert);
    return place.matrix(place.parameter->master);
  };
  upcycle::grow_expert_moment(plan, slot.layer, upcycle::child_of(plan, slot), slot.role(), kind, moments, weights,
                              out);
}

void fill_router_moment(const Before& before, const GrowthPlan& plan, const TensorSlot& slot, MomentKind kind,
                        std::span<float> out) {
  const auto& source = before.source(plan, slot);
  const at::Tensor& moment = kind == MomentKind::kExpAvg ? source.state->exp_avg : source.state->exp_avg_sq;
  const int64_t cols = moment.numel() / plan.experts_before;
  upcycle::grow_router_moment(plan, slot.layer, kind, source.of(moment), cols, out);
}

// Optimizer state of one parameter whose experts grow; `state` has its new sizes.
void fill_state(const Before& before, const GrowthPlan& plan, const Parameter& parameter, ParameterState& state) {
  for (const auto& slice : parameter.slices) {
    const auto fill = families::is_expert(slice.slot.role()) ? fill_expert_moment : fill_router_moment;
    fill(before, plan, slice.slot, MomentKind::kExpAvg, floats(state.exp_avg, slice.begin, slice.count));
    fill(before, plan, slice.slot, MomentKind::kExpAvgSq, floats(state.exp_avg_sq, slice.begin, slice.count));
  }
  const auto& steps = before.source(plan, parameter.slices.front().slot).state->steps;
  const auto& children = plan.layer(parameter.layer).children;
  for (size_t e = 0; e < children.size(); ++e) {
    state.steps[e] = upcycle::grow_step(plan, children[e], steps[children[e].parent]);
  }
}

}  // namespace

void grow(nn::Decoder& model, Optimizer& optimizer, const GrowthPlan& plan) {
  COPPICE_CHECK(model.config().num_experts == plan.experts_before);
  const at::NoGradGuard no_grad;
  const Before before(model, optimizer);
  const auto config = families::read_config(upcycle::grown_config(model.config(), plan), "growth");
  nn::Decoder grown(config, model.dtype(),
                    [&](const TensorSlot& slot, std::span<float> values) { fill_master(before, plan, slot, values); });
  Optimizer grown_optimizer(grown.parameters());
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
}

}  // namespace coppice::train
