#include "coppice/grow/grow.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/lane_sum.h"
#include "coppice/base/text.h"
#include "coppice/matrix/finite.h"
#include "coppice/matrix/unit_slice.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"

namespace coppice::grow {
namespace {

using families::Role;
using matrix::MatrixBytes;
using matrix::MatrixRows;
using matrix::MatrixSource;
using matrix::RowsSource;
using methods::Child;
using methods::ExpertInit;
using methods::LayerPlan;
using methods::MethodChoice;
using methods::Moment;
using methods::MomentContext;
using methods::Params;
using methods::RouterTensor;
using plan::GrowthPlan;

const ExpertInit& expert_method(const GrowthPlan& plan, int64_t layer) {
  return methods::expert_init(plan.expert_init_of(layer).name);
}

Params expert_params(const GrowthPlan& plan, int64_t layer) {
  const MethodChoice& choice = plan.expert_init_of(layer);
  return {choice.name, methods::expert_init(choice.name).params, choice.given};
}

bool leaves_alone(const ExpertInit& method, Role role) {
  return method.same_bytes || (families::is_bias(role) && !method.changes_biases);
}

/// Whether the child's tensor equals its parent's, except for the plan's factor.
bool has_values_of_parent(const GrowthPlan& plan, int64_t layer, const Child& child, Role role) {
  return child.copy == 0 || leaves_alone(expert_method(plan, layer), role);
}

Params optimizer_params(const GrowthPlan& plan) {
  return {plan.optimizer_state.name, methods::optimizer_init(plan.optimizer_state.name).params,
          plan.optimizer_state.given};
}

methods::ChildKey key_of(const GrowthPlan& plan, int64_t layer, const Child& child) {
  return {.seed = plan.seed,
          .layer = layer,
          .parent = child.parent,
          .copy = child.copy,
          .num_experts = plan.experts_before};
}

std::string subject_of(int64_t layer, Role role) { return cat("layer ", layer, ", ", families::role_name(role)); }
std::string subject_of(int64_t layer, uint32_t expert, Role role) {
  return cat("layer ", layer, ", expert ", expert, ", ", families::role_name(role));
}

RowsSource finite_rows_of(const MatrixSource& source, int64_t layer, Role role) {
  return [&source, layer, role](uint32_t expert) {
    return matrix::only_finite(matrix::rows_of(source(expert), role), subject_of(layer, expert, role));
  };
}

/// mean|child - W| / mean|W|; 0 if the parent is all zeros.
double weight_change(const GrowthPlan& plan, int64_t layer, const Child& child, Role role,
                     const MatrixSource& weights) {
  if (has_values_of_parent(plan, layer, child, role)) return 0;
  const RowsSource originals = finite_rows_of(weights, layer, role);
  const auto parent = originals(child.parent).all();
  auto values = child_matrix(plan, layer, child, role, originals).all();
  for (size_t i = 0; i < values.size(); ++i) values[i] -= parent[i];
  const auto size = [](float x) { return std::abs(static_cast<double>(x)); };
  LaneSum change, whole;
  change.add_each(std::span<const float>(values), size);
  whole.add_each(std::span<const float>(parent), size);
  return whole.total() > 0 ? change.total() / whole.total() : 0.0;
}

RouterTensor router_tensor(Role role) {
  COPPICE_CHECK(role == Role::kRouter || role == Role::kRouterBias || role == Role::kSelectionBias);
  if (role == Role::kRouter) return RouterTensor::kWeight;
  return role == Role::kRouterBias ? RouterTensor::kBias : RouterTensor::kSelectionBias;
}

/// Whether the method changes this tensor of the router.
bool changes(const methods::RouterInit& method, RouterTensor tensor, bool has_router_bias) {
  if (method.only_copies()) return false;
  if (!method.needs_bias) return tensor == RouterTensor::kWeight;
  return tensor == (has_router_bias ? RouterTensor::kBias : RouterTensor::kSelectionBias);
}

/// Sets every child's row to its parent's; if the plan sets new selection biases to 0, those of copies are 0.
template <class T>
void spread_rows(const GrowthPlan& plan, const LayerPlan& layer, std::span<const T> before, size_t cols,
                 bool zero_copies, std::span<T> out) {
  COPPICE_CHECK(before.size() == static_cast<size_t>(plan.experts_before) * cols);
  COPPICE_CHECK(out.size() == layer.children.size() * cols);
  for (size_t i = 0; i < layer.children.size(); ++i) {
    const Child& child = layer.children[i];
    const auto row = out.subspan(i * cols, cols);
    if (zero_copies && child.copy > 0) {
      std::ranges::fill(row, T{});
    } else {
      std::ranges::copy(before.subspan(child.parent * cols, cols), row.begin());
    }
  }
}

/// If gates are shares of the parent's gate, a part whose weights are scaled by a has the parent's gradient / a. If
/// each part has the whole gate, the bias is divided and its gradient equals the parent's.
double split_moment_factor(const GrowthPlan& plan, Role role, Moment kind) {
  const bool is_down = role == Role::kExpertDown || role == Role::kExpertDownBias;
  const double of_gradient = is_down ? 1.0 / plan.down_factor : 1.0;
  return kind == Moment::kFirst ? of_gradient : of_gradient * of_gradient;
}

}  // namespace

bool is_plain_copy(const GrowthPlan& plan, const Child& child) {
  if (plan.split > 1 || plan.down_factor != 1 || plan.down_bias_factor != 1) return false;
  if (child.copy == 0) return true;
  const auto copies = [](const MethodChoice& choice) { return methods::expert_init(choice.name).same_bytes; };
  return copies(plan.expert_init) && std::ranges::all_of(plan.layers, [&](const LayerPlan& layer) {
           return !layer.expert_init || copies(*layer.expert_init);
         });
}

bool is_plain_copy(const GrowthPlan& plan, int64_t layer, const Child& child, Role role) {
  return plan.split == 1 && plan::expert_factor(plan, role) == 1 && has_values_of_parent(plan, layer, child, role);
}

MatrixRows child_matrix(const GrowthPlan& plan, int64_t layer, const Child& child, Role role,
                        const RowsSource& originals) {
  MatrixRows parent = originals(child.parent);
  const double factor = plan::expert_factor(plan, role);
  if (plan.split > 1) return matrix::unit_slice(parent, child.copy, plan.split, factor);
  if (has_values_of_parent(plan, layer, child, role)) return matrix::scaled(std::move(parent), factor);
  parent.read =
      expert_method(plan, layer).child(parent, key_of(plan, layer, child), originals, expert_params(plan, layer));
  return matrix::scaled(std::move(parent), factor);
}

std::vector<uint32_t> sources_of(const GrowthPlan& plan, int64_t layer, const Child& child) {
  std::vector<uint32_t> out{child.parent};
  if (child.copy == 0 || !expert_method(plan, layer).needs_partner) return out;
  const methods::ChildKey key = key_of(plan, layer, child);
  for (const uint32_t other : {key.next(), key.partner()}) {
    if (std::ranges::find(out, other) == out.end()) out.push_back(other);
  }
  return out;
}

bool grows_by_rows(const GrowthPlan& plan, int64_t layer) {
  return plan.split > 1 || !expert_method(plan, layer).holds_matrix;
}

void grow_expert(const GrowthPlan& plan, int64_t layer, const Child& child, Role role, const MatrixSource& source,
                 io::Dtype out_dtype, std::span<std::byte> out) {
  COPPICE_CHECK(families::is_expert(role), families::role_name(role));
  const MatrixBytes parent = source(child.parent);
  if (is_plain_copy(plan, layer, child, role) && parent.dtype == out_dtype) {
    COPPICE_CHECK(parent.bytes.size() == out.size());
    std::memcpy(out.data(), parent.bytes.data(), out.size());
    return;
  }
  matrix::round_rows(child_matrix(plan, layer, child, role, finite_rows_of(source, layer, role)), out_dtype, out);
}

void grow_router(const GrowthPlan& plan, int64_t layer, Role role, MatrixBytes before, std::span<std::byte> out,
                 bool has_router_bias) {
  const LayerPlan& layer_plan = plan.layer(layer);
  const auto row_bytes = static_cast<size_t>(before.cols) * static_cast<size_t>(io::dtype_bits(before.dtype)) / 8;
  const bool zero_copies = role == Role::kSelectionBias && plan.balance_bias == plan::kBalanceBiasZero;
  spread_rows(plan, layer_plan, before.bytes, row_bytes, zero_copies, out);
  if (role == Role::kSelectionBias && plan.selection_bias_factor != 1) {
    auto values = matrix::widened({before.dtype, static_cast<int64_t>(layer_plan.children.size()), before.cols, out},
                                  families::role_name(role));
    matrix::check_finite(values, 0, before.cols, subject_of(layer, role));
    for (float& x : values) x = static_cast<float>(plan.selection_bias_factor * x);
    matrix::round_finite(before.dtype, values, out, subject_of(layer, role));
  }

  const RouterTensor tensor = router_tensor(role);
  const MethodChoice& choice = plan.router_init_of(layer);
  const methods::RouterInit& method = methods::router_init(choice.name);
  if (!changes(method, tensor, has_router_bias)) return;
  const Params params(method.name, method.params, choice.given);
  const MatrixBytes spread{before.dtype, static_cast<int64_t>(layer_plan.children.size()), before.cols, out};
  const auto unchanged = matrix::widened(spread, families::role_name(role));
  const auto source = matrix::widened(before, families::role_name(role));
  matrix::check_finite(source, 0, before.cols, subject_of(layer, role));
  auto values = unchanged;
  method.apply({.rows = spread.rows, .cols = spread.cols, .values = values, .source = source}, tensor, layer_plan,
               plan.seed, params, has_router_bias);

  std::vector<float> rounded(values.size());
  matrix::round_finite(before.dtype, values, out, subject_of(layer, role));
  io::to_f32(before.dtype, out, rounded);
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] == unchanged[i] || rounded[i] != unchanged[i]) continue;
    rounded[i] = io::next_representable(before.dtype, unchanged[i], values[i] - unchanged[i]);
  }
  matrix::round_finite(before.dtype, rounded, out, subject_of(layer, role));
}

void grow_expert_moment(const GrowthPlan& plan, int64_t layer, const Child& child, Role role, Moment kind,
                        const MatrixSource& moments, const MatrixSource& weights, std::span<float> out) {
  COPPICE_CHECK(families::is_expert(role), families::role_name(role));
  const MatrixBytes stored = moments(child.parent);
  const auto subject = [&](uint32_t expert) { return cat(subject_of(layer, expert, role), ", ", moment_name(kind)); };
  if (plan.split > 1) {
    const MatrixRows parent = matrix::only_finite(matrix::rows_of(stored, role), subject(child.parent));
    matrix::unit_slice(parent, child.copy, plan.split, split_moment_factor(plan, role, kind)).read(0, out);
    return matrix::check_finite(out, 0, parent.cols, subject(child.parent));
  }
  const auto before = matrix::widened(stored, "optimizer state");
  COPPICE_CHECK(before.size() == out.size());
  std::ranges::copy(before, out.begin());
  const methods::OptimizerInit& strategy = methods::optimizer_init(plan.optimizer_state.name);
  if (child.copy == 0 && !strategy.touches_original) return;
  if (strategy.computes) matrix::check_finite(before, 0, stored.cols, subject(child.parent));

  const auto experts = plan.experts_before;
  MomentContext context{
      .moment = kind, .copy = child.copy, .num_siblings = plan.layer(layer).siblings(experts)[child.parent]};
  if (strategy.needs_change) context.weight_change = weight_change(plan, layer, child, role, weights);
  std::vector<float> next;
  if (strategy.needs_next) {
    const auto expert = static_cast<uint32_t>((child.parent + 1) % experts);
    next = matrix::widened(moments(expert), "optimizer state");
    matrix::check_finite(next, 0, stored.cols, subject(expert));
    context.next = next;
  }
  strategy.apply(out, context, optimizer_params(plan));

  const ExpertInit& method = expert_method(plan, layer);
  if (child.copy == 0 || method.apply_moment == nullptr || leaves_alone(method, role)) return;
  method.apply_moment({.role = role, .rows = stored.rows, .cols = stored.cols, .values = out},
                      key_of(plan, layer, child), expert_params(plan, layer));
}

void grow_router_moment(const GrowthPlan& plan, int64_t layer, Moment kind, std::span<const float> before, int64_t cols,
                        std::span<float> out) {
  const LayerPlan& layer_plan = plan.layer(layer);
  const auto width = static_cast<size_t>(cols);
  const auto experts = static_cast<size_t>(plan.experts_before);
  spread_rows(plan, layer_plan, before, width, false, out);
  const methods::OptimizerInit& strategy = methods::optimizer_init(plan.optimizer_state.name);
  const Params params = optimizer_params(plan);
  const auto siblings = layer_plan.siblings(plan.experts_before);
  if (strategy.computes) matrix::check_finite(before, 0, cols, cat("layer ", layer, ", router, ", moment_name(kind)));
  for (size_t i = 0; i < layer_plan.children.size(); ++i) {
    const Child& child = layer_plan.children[i];
    if (child.copy == 0 && !strategy.touches_original) continue;
    MomentContext context{.moment = kind, .copy = child.copy, .num_siblings = siblings[child.parent]};
    if (strategy.needs_next) context.next = before.subspan((child.parent + 1) % experts * width, width);
    strategy.apply(out.subspan(i * width, width), context, params);
  }
}

int64_t grow_step(const GrowthPlan& plan, const Child& child, int64_t parent_step) {
  return child.copy == 0 || methods::optimizer_init(plan.optimizer_state.name).keeps_step ? parent_step : 0;
}

}  // namespace coppice::grow
