#include "coppice/plan/split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "coppice/grow/grow.h"
#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"

namespace coppice::plan {
namespace {

using families::GateFunction;
using families::Role;
using methods::Moment;
using testing::example_config;
using testing::normal_values;

constexpr int64_t kExperts = 6, kTopK = 2, kUnits = 12, kDim = 5;

struct Matrix {
  int64_t rows, cols;
  std::vector<float> values;
  double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

/// An MoE layer with every bias there is, computed in fp64.
struct Layer {
  families::Routing routing;
  int64_t top_k;
  Matrix router;
  std::vector<float> selection_bias;
  std::vector<Matrix> gate, up, down, gate_bias, down_bias;

  std::vector<double> output(const std::vector<double>& x) const {
    const auto experts = static_cast<size_t>(router.rows);
    std::vector<double> score(experts);
    for (size_t e = 0; e < experts; ++e) {
      for (int64_t c = 0; c < kDim; ++c) score[e] += router.at(static_cast<int64_t>(e), c) * x[static_cast<size_t>(c)];
    }
    const auto logits = score;
    if (routing.gate == GateFunction::kSoftmaxTopK) {
      double sum = 0;
      for (double& s : score) sum += s = std::exp(s);
      for (double& s : score) s /= sum;
    } else if (routing.gate == GateFunction::kSigmoidTopK) {
      for (double& s : score) s = 1 / (1 + std::exp(-s));
    }
    std::vector<size_t> order(experts);
    std::iota(order.begin(), order.end(), size_t{0});
    const auto key = [&](size_t e) { return score[e] + (selection_bias.empty() ? 0.0 : selection_bias[e]); };
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return key(a) > key(b); });
    order.resize(static_cast<size_t>(top_k));
    std::vector<double> gates;
    for (const size_t e : order)
      gates.push_back(routing.gate == GateFunction::kTopKSoftmax ? std::exp(logits[e]) : score[e]);
    const double sum = std::accumulate(gates.begin(), gates.end(), 0.0);
    if (routing.renormalise || routing.gate == GateFunction::kTopKSoftmax) {
      for (double& g : gates) g /= sum;
    }
    std::vector<double> y(kDim, 0.0);
    for (size_t i = 0; i < order.size(); ++i) {
      const size_t e = order[i];
      for (int64_t r = 0; r < kDim; ++r) y[static_cast<size_t>(r)] += gates[i] * down_bias[e].at(r, 0);
      for (int64_t u = 0; u < gate[e].rows; ++u) {
        double g = gate_bias[e].at(u, 0), v = 0;
        for (int64_t c = 0; c < kDim; ++c) {
          g += gate[e].at(u, c) * x[static_cast<size_t>(c)];
          v += up[e].at(u, c) * x[static_cast<size_t>(c)];
        }
        const double h = g / (1 + std::exp(-g)) * v;
        for (int64_t r = 0; r < kDim; ++r) y[static_cast<size_t>(r)] += gates[i] * down[e].at(r, u) * h;
      }
    }
    return y;
  }
};

Layer random_layer(const families::Routing& routing) {
  Layer layer{.routing = routing, .top_k = kTopK, .router = {kExperts, kDim, normal_values(kExperts * kDim, 1)}};
  if (routing.has_selection_bias) layer.selection_bias = normal_values(kExperts, 2, 0.3f);
  for (uint32_t e = 0; e < kExperts; ++e) {
    layer.gate.push_back({kUnits, kDim, normal_values(kUnits * kDim, 10 + e)});
    layer.up.push_back({kUnits, kDim, normal_values(kUnits * kDim, 20 + e)});
    layer.down.push_back({kDim, kUnits, normal_values(kUnits * kDim, 30 + e)});
    layer.gate_bias.push_back({kUnits, 1, normal_values(kUnits, 40 + e)});
    layer.down_bias.push_back({kDim, 1, normal_values(kDim, 50 + e)});
  }
  return layer;
}

std::vector<Matrix> parts_of(const GrowthPlan& plan, Role role, const std::vector<Matrix>& before) {
  std::vector<Matrix> after;
  const matrix::MatrixSource source = [&](uint32_t e) {
    return matrix::MatrixBytes{io::Dtype::kF32, before[e].rows, before[e].cols,
                               std::as_bytes(std::span(before[e].values))};
  };
  for (const methods::Child& child : plan.layers[0].children) {
    EXPECT_FALSE(grow::is_plain_copy(plan, child));
    EXPECT_FALSE(grow::is_plain_copy(plan, 0, child, role));
    Matrix part = before[child.parent];
    if (role == Role::kExpertDown) {
      part.cols /= plan.split;
    } else if (role != Role::kExpertDownBias) {
      part.rows /= plan.split;
    }
    part.values.resize(static_cast<size_t>(part.rows * part.cols));
    grow::grow_expert(plan, 0, child, role, source, io::Dtype::kF32, std::as_writable_bytes(std::span(part.values)));
    after.push_back(std::move(part));
  }
  return after;
}

Layer split_layer(const GrowthPlan& plan, const Layer& before) {
  Layer after{
      .routing = before.routing, .top_k = before.top_k * plan.top_k_factor, .router = {plan.experts_after, kDim, {}}};
  const auto rows = [&](Role role, int64_t cols, const std::vector<float>& from) {
    std::vector<float> out(static_cast<size_t>(plan.experts_after * cols));
    grow::grow_router(plan, 0, role, {io::Dtype::kF32, kExperts, cols, std::as_bytes(std::span(from))},
                      std::as_writable_bytes(std::span(out)), false);
    return out;
  };
  after.router.values = rows(Role::kRouter, kDim, before.router.values);
  if (!before.selection_bias.empty()) after.selection_bias = rows(Role::kSelectionBias, 1, before.selection_bias);
  after.gate = parts_of(plan, Role::kExpertGate, before.gate);
  after.up = parts_of(plan, Role::kExpertUp, before.up);
  after.down = parts_of(plan, Role::kExpertDown, before.down);
  after.gate_bias = parts_of(plan, Role::kExpertGateBias, before.gate_bias);
  after.down_bias = parts_of(plan, Role::kExpertDownBias, before.down_bias);
  return after;
}

// Softmax of either order, sigmoid with and without renormalisation, with and without a selection bias, in 2 and 3 parts
// and in either order of children.
TEST(Split, KeepsTheFunctionOfEveryRouter) {
  for (const auto gate : {GateFunction::kSoftmaxTopK, GateFunction::kTopKSoftmax, GateFunction::kSigmoidTopK}) {
    for (const bool renormalise : {false, true}) {
      for (const bool has_bias : {false, true}) {
        for (const int64_t parts : {2, 3}) {
          for (const char* order : {"append", "siblings"}) {
            if (gate == GateFunction::kTopKSoftmax && has_bias) continue;  // no family has it
            SCOPED_TRACE(::testing::Message() << static_cast<int>(gate) << renormalise << has_bias << parts << order);
            auto config = example_config("glm4_moe", {.num_experts = kExperts, .top_k = kTopK});
            config.expert_width = kUnits;
            config.routing.gate = gate;
            config.routing.renormalise = renormalise;
            config.routing.has_selection_bias = has_bias;
            const auto plan = make_plan(config, {.order = order, .split = parts}, nullptr);
            const Layer before = random_layer(config.routing), after = split_layer(plan, before);
            EXPECT_EQ(after.gate[0].rows, kUnits / parts);
            for (uint32_t token = 0; token < 20; ++token) {
              const auto x32 = normal_values(kDim, 100 + token);
              const std::vector<double> x(x32.begin(), x32.end());
              const auto wanted = before.output(x), found = after.output(x);
              double size = 0;
              for (const double y : wanted) size = std::max(size, std::abs(y));
              for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(found[i], wanted[i], 1e-6 * size);
            }
          }
        }
      }
    }
  }
}

TEST(Split, KeepsTheSharedExpertAndTheWidthOfAllExperts) {
  const auto config = example_config("glm4_moe", {.shared_width = models::ModelSizes{}.expert_width});
  const auto plan = make_plan(config, {.split = 2}, nullptr);
  const auto after = families::read_config(grown_config(config, plan), "after");
  EXPECT_EQ(after.num_experts, 2 * config.num_experts);
  EXPECT_EQ(after.top_k, 2 * config.top_k);
  EXPECT_EQ(2 * after.expert_width, config.expert_width);
  EXPECT_EQ(after.shared_width, config.shared_width);
  EXPECT_GT(config.shared_width, 0);
}

// The first moment is of the gradient, which is 1/m of the parent's where down was multiplied by m.
TEST(Split, CutsMomentsWithTheWeights) {
  const auto config = example_config("mixtral", {.num_experts = 2, .top_k = 1});
  const auto plan = make_plan(config, {.split = 2}, nullptr);
  const std::vector<float> before{1, 2, 3, 4, 5, 6, 7, 8};  // [2, 4]
  const matrix::MatrixSource source = [&](uint32_t) {
    return matrix::MatrixBytes{io::Dtype::kF32, 2, 4, std::as_bytes(std::span(before))};
  };
  std::vector<float> out(4);
  const auto grow = [&](Role role, Moment kind) {
    grow::grow_expert_moment(plan, 0, {1, 1}, role, kind, source, source, out);
    return out;
  };
  EXPECT_EQ(grow(Role::kExpertDown, Moment::kFirst), (std::vector<float>{1.5, 2, 3.5, 4}));
  EXPECT_EQ(grow(Role::kExpertDown, Moment::kSecond), (std::vector<float>{0.75, 1, 1.75, 2}));
  EXPECT_EQ(grow(Role::kExpertUp, Moment::kFirst), (std::vector<float>{5, 6, 7, 8}));
}

TEST(Split, RefusesWhatHasNoPlaceInIt) {
  const auto config = example_config("mixtral");
  const auto refused = [&](const families::ModelConfig& model, const GrowthOptions& options,
                           std::initializer_list<const char*> parts) {
    SCOPED_TRACE(*parts.begin());
    testing::expect_error(ErrorCode::kUsage, parts, [&] { (void)make_plan(model, options, nullptr); });
  };
  refused(config, {.split = 7}, {"split", "7 equal parts"});
  refused(config, {.expert_init = {"copy_noise", {}}, .split = 2}, {"expert-init", "copy_noise"});
  refused(config, {.router_init = methods::MethodChoice{"copy_noise", {}}, .split = 2}, {"router-init", "copy_noise"});
  refused(config, {.optimizer_state = {"reset", {}}, .split = 2}, {"optimizer-state", "reset"});
  refused(config, {.scale_top_k = true, .split = 2}, {"top-k"});
  auto grouped = example_config("glm4_moe");
  grouped.routing.num_groups = 2;
  refused(grouped, {.split = 2}, {"router groups"});
}

}  // namespace
}  // namespace coppice::plan
