#include "coppice/train/growth.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/grow/grow.h"
#include "coppice/grow/grown_weights.h"
#include "coppice/models/expert_layout.h"
#include "coppice/nn/division.h"
#include "coppice/nn/host.h"
#include "coppice/nn/parameter_builder.h"
#include "coppice/step/divided_state.h"

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

// What this rank needs of a parameter before the expansion, with its moments in f32 as in a checkpoint, on the host; on
// one rank of the CPU not copied.
class Before {
 public:
  // `experts`: those that master and moments have, as their first dimension; empty if the parameter has none.
  Before(const Parameter& parameter, std::vector<int64_t> experts, at::Tensor master, const at::Tensor& first,
         const at::Tensor& second, std::vector<int64_t> all_steps)
      : layer(parameter.layer),
        steps(std::move(all_steps)),
        master_(std::move(master)),
        first_(first),
        second_(second) {
    if (!parameter.is_experts()) {
      const int64_t rows = master_.size(0);
      places_[{parameter.role, -1}] = {0, rows, master_.numel() / rows};
      return;
    }
    const Parameter here{.role = parameter.role, .layer = layer, .value = master_, .experts = std::move(experts)};
    for (const auto& m : here.expert_matrices()) places_[{m.role, m.expert}] = {m.begin, m.rows, m.cols};
  }

  const int64_t layer;
  const std::vector<int64_t> steps;  // by expert, of all ranks

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
  if (slot.expert >= 0) {  // a tensor of its own, or its part of a stack
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
  const at::Tensor out = at::empty(parameter.value.sizes(), at::kFloat);
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
  const auto& children = plan.layer(parameter.layer).children;
  for (int64_t expert = 0; expert < std::ssize(children); ++expert) {
    const bool is_here = !parameter.is_experts() || std::ranges::binary_search(parameter.experts, expert);
    const Child& child = children[static_cast<size_t>(expert)];
    if (is_here) out.steps.push_back(grow::grow_step(plan, child, before.steps[child.parent]));
  }
  return out;
}

void grow_selection_bias(const GrowthPlan& plan, int64_t layer, bool has_router_bias, at::Tensor& bias_E) {
  const at::Tensor here_E = nn::on_host(bias_E), out = at::empty({plan.experts_after}, at::kFloat);
  const MatrixBytes matrix{io::Dtype::kF32, here_E.numel(), 1, nn::host_bytes(here_E)};
  grow::grow_router(plan, layer, Role::kSelectionBias, matrix, nn::host_bytes(out), has_router_bias);
  bias_E = nn::to_device(out, bias_E.device());
}

std::map<int64_t, std::vector<uint32_t>> parents_of(const GrowthPlan& plan, const families::ModelConfig& config) {
  std::map<int64_t, std::vector<uint32_t>> out;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.moe_layer[static_cast<size_t>(layer)]) continue;
    for (const Child& child : plan.layer(layer).children) out[layer].push_back(child.parent);
  }
  return out;
}

// The model and its state before the expansion, and how both are divided over ranks before and after it.
class Growth {
 public:
  Growth(nn::Decoder& model, step::Optimizer& optimizer, const GrowthPlan& plan)
      : model_(model),
        optimizer_(optimizer),
        plan_(plan),
        config_(families::read_config(plan::grown_config(model.config(), plan), "growth")),
        division_(nn::divide(model.division().world, config_, parents_of(plan, config_))) {
    if (!optimizer.divided()) return;
    before_.emplace(optimizer.divided()->layout());
    auto sizes = before_->sizes();
    for (auto& size : sizes) {
      if (families::is_router(size.role)) size.count = size.count / plan.experts_before * plan.experts_after;
      if (size.experts > 0) size.experts = plan.experts_after;
      // A plan that splits experts makes them narrower.
      const bool by_width = families::is_expert(size.role) && size.role != Role::kExpertDownBias;
      if (by_width) size.count = size.count / model.config().expert_width * config_.expert_width;
    }
    after_.emplace(std::move(sizes), division_);
  }

  void run() {
    const auto moment_dtype = optimizer_.moment_dtype();
    const bool has_router_bias = model_.config().routing.has_router_bias;
    const nn::ParameterBuilder builder(config_, model_.dtype(), model_.device(), division_);
    optimizer_.clear();
    std::vector<step::ParameterState> states = std::move(optimizer_.states());
    optimizer_ = step::Optimizer(std::vector<Parameter>{});  // frees the memory of its gradients
    for (size_t i = 0; i < states.size(); ++i) {
      Parameter& parameter = model_.parameters()[i];
      if (!grows(parameter.role)) {
        move(i, parameter, states[i]);
        continue;
      }
      const Before before = this->before(i, parameter, states[i]);
      auto grown = builder.build(parameter.role, parameter.layer, [&](const TensorSlot& slot, std::span<float> values) {
        fill_master(before, plan_, slot, has_router_bias, values);
      });
      states[i] = grown_state(before, plan_, grown, moment_dtype);
      keep_own(i, grown, states[i]);
      parameter = std::move(grown);
    }
    for (auto& [layer, bias_E] : model_.selection_bias()) grow_selection_bias(plan_, layer, has_router_bias, bias_E);
    model_.set_config(std::move(config_));
    model_.set_division(division_);
    optimizer_ = step::Optimizer(model_.parameters(), division_, std::move(states));
  }

 private:
  dist::Group& ranks() const { return division_.world->all(); }

  // Of a parameter that does not grow: brings the elements that this rank keeps from now on.
  void move(size_t i, Parameter& parameter, step::ParameterState& state) const {
    if (!after_) return;
    const auto shards = before_->shards(i);
    if (shards == after_->shards(i)) return;
    std::vector<std::vector<step::Interval>> wanted(static_cast<size_t>(ranks().size()));
    for (const step::Shard& shard : after_->shards(i))
      wanted[static_cast<size_t>(shard.rank)].push_back(shard.elements);
    for (at::Tensor* const tensor : {&parameter.master, &state.exp_avg, &state.exp_avg_sq}) {
      *tensor = step::gather_shards(ranks(), shards, *tensor, wanted);
    }
  }

  // The originals that decide the experts of a rank after the expansion, in rising order.
  std::vector<int64_t> sources(size_t i, int64_t layer, int64_t rank) const {
    std::set<int64_t> out;
    for (const int64_t expert : after_->experts_of(i, rank)) {
      const Child& child = plan_.layer(layer).children.at(static_cast<size_t>(expert));
      for (const uint32_t source : grow::sources_of(plan_, layer, child)) out.insert(source);
    }
    return {out.begin(), out.end()};
  }

  Before before(size_t i, const Parameter& parameter, const step::ParameterState& state) const {
    if (!after_) {
      return {parameter,
              parameter.experts,
              nn::on_host(parameter.master),
              on_host(state.exp_avg),
              on_host(state.exp_avg_sq),
              state.steps};
    }
    const std::vector<step::Interval> all{{0, before_->whole_count(i)}};
    std::vector<std::vector<step::Interval>> wanted;
    for (int64_t rank = 0; rank < ranks().size(); ++rank) {
      wanted.push_back(parameter.is_experts() ? before_->elements_of(i, sources(i, parameter.layer, rank)) : all);
    }
    const auto experts = parameter.is_experts() ? sources(i, parameter.layer, ranks().rank()) : std::vector<int64_t>{};
    auto shape = parameter.value.sizes().vec();
    if (parameter.is_experts()) shape[0] = std::ssize(experts);
    const auto shards = before_->shards(i);
    const auto here = [&](const at::Tensor& own) {
      return on_host(step::gather_shards(ranks(), shards, own, wanted).view(shape));
    };
    return {parameter,
            experts,
            here(parameter.master),
            here(state.exp_avg),
            here(state.exp_avg_sq),
            steps_of_all_experts(parameter, state)};
  }

  // An expert's step count is the same on all ranks that have it.
  std::vector<int64_t> steps_of_all_experts(const Parameter& parameter, const step::ParameterState& state) const {
    if (!parameter.is_experts()) return state.steps;
    const at::Tensor steps = at::zeros({plan_.experts_before}, at::kLong);
    const auto values = nn::host_values<int64_t>(steps);
    for (size_t k = 0; k < parameter.experts.size(); ++k) {
      values[static_cast<size_t>(parameter.experts[k])] = state.steps[k];
    }
    division_.world->control().all_reduce(steps, dist::Reduce::kMax).wait();
    return nn::to_host<int64_t>(steps);
  }

  // Cuts a grown parameter and its state to the elements that this rank keeps.
  void keep_own(size_t i, Parameter& parameter, step::ParameterState& state) const {
    if (!after_) return;
    const step::Interval own = after_->kept(i);
    for (at::Tensor* const tensor : {&parameter.master, &state.exp_avg, &state.exp_avg_sq}) {
      *tensor = tensor->view({-1}).narrow(0, own.begin, own.count()).clone();
    }
  }

  static at::Tensor on_host(const at::Tensor& moment) { return nn::on_host(moment).to(at::kFloat); }

  nn::Decoder& model_;
  step::Optimizer& optimizer_;
  const GrowthPlan& plan_;
  families::ModelConfig config_;
  nn::Division division_;
  std::optional<step::ShardLayout> before_, after_;  // on several ranks
};

}  // namespace

void grow(nn::Decoder& model, step::Optimizer& optimizer, const GrowthPlan& plan) {
  COPPICE_CHECK(model.config().num_experts == plan.experts_before);
  const at::NoGradGuard no_grad;
  optimizer.wait_for_values(model.config().num_layers);
  Growth(model, optimizer, plan).run();
}

}  // namespace coppice::train
