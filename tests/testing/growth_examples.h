#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <string_view>
#include <vector>

#include "coppice/methods/expert_init.h"
#include "coppice/models/generate.h"
#include "coppice/plan/plan.h"
#include "coppice/plan/utility.h"

namespace coppice::testing {

/// The configuration of a tiny model: 3 layers of 8 experts, top-2. glm4_moe has a selection bias, mixtral no bias at
/// all.
inline families::ModelConfig example_config(std::string_view family, models::ModelSizes sizes = {}) {
  sizes.family = family;
  sizes.num_layers = 3;
  if (sizes.num_experts == models::ModelSizes{}.num_experts) sizes.num_experts = 8;
  return families::read_config(models::make_config(sizes, io::Dtype::kF32), "example");
}

/// Scores of `config` under gradient_squared: expert e of layer l has e + 1 + l in both parts.
inline plan::Scores example_scores(const families::ModelConfig& config) {
  plan::Scores scores;
  scores.model_digest = "m";
  scores.tokens_digest = "t";
  scores.model_type = config.family->model_type;
  scores.layers = config.num_layers;
  scores.experts = config.num_experts;
  scores.tokens_seen = 1000;
  scores.batch_tokens = 100;
  scores.batches = 10;
  auto& metric = scores.metrics["gradient_squared"];
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (int64_t e = 0; e < config.num_experts; ++e) {
      metric.fc1.sum[layer].push_back(static_cast<double>(e + 1 + layer));
      metric.fc2.sum[layer].push_back(static_cast<double>(e + 1 + layer));
    }
  }
  return scores;
}

/// One layer (number 5), every expert duplicated `times` - 1 times.
inline plan::GrowthPlan example_plan(int64_t experts, int64_t times, methods::MethodChoice expert_init,
                                     methods::MethodChoice router_init = {"copy", {}},
                                     methods::MethodChoice optimizer_state = {"copy", {}}) {
  plan::GrowthPlan plan;
  plan.seed = 7;
  plan.experts_before = experts;
  plan.experts_after = experts * times;
  plan.expert_init = std::move(expert_init);
  plan.router_init = std::move(router_init);
  plan.optimizer_state = std::move(optimizer_state);
  methods::LayerPlan layer{.layer = 5, .children = {}};
  for (uint32_t copy = 0; copy < times; ++copy) {
    for (uint32_t parent = 0; parent < experts; ++parent) layer.children.push_back({parent, copy});
  }
  plan.layers.push_back(std::move(layer));
  return plan;
}

inline std::vector<float> normal_values(size_t count, uint32_t seed, float std = 1.0f, float mean = 0.0f) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal(mean, std);
  std::vector<float> out(count);
  for (float& x : out) x = normal(bits);
  return out;
}

/// The parent's matrix made into the child's: a few rows at a time, the last ones first, since any order must do.
inline void make_child(const methods::ExpertInit& method, methods::ExpertView matrix, const methods::ChildKey& key,
                       const std::function<std::vector<float>(uint32_t expert)>& partner,
                       const methods::Params& params) {
  const auto rows_of = [&](std::vector<float> values) -> matrix::MatrixRows {
    const auto read = [values = std::move(values), cols = matrix.cols](int64_t first, std::span<float> out) {
      std::copy_n(values.begin() + first * cols, out.size(), out.begin());
    };
    return {matrix.role, matrix.rows, matrix.cols, read};
  };
  const matrix::MatrixRows parent = rows_of({matrix.values.begin(), matrix.values.end()});
  const auto fill = method.child(parent, key, [&](uint32_t expert) { return rows_of(partner(expert)); }, params);
  constexpr int64_t kRows = 7;
  for (int64_t end = matrix.rows; end > 0; end -= kRows) {
    const int64_t first = std::max<int64_t>(0, end - kRows);
    const auto at = static_cast<size_t>(first * matrix.cols), count = static_cast<size_t>((end - first) * matrix.cols);
    fill(first, matrix.values.subspan(at, count));
  }
}

/// Every row of a method table as test parameters; the name makes the test's name.
template <class Row>
std::vector<const Row*> rows_of(std::span<const Row> table) {
  std::vector<const Row*> out;
  for (const Row& row : table) out.push_back(&row);
  return out;
}
struct RowName {
  template <class Info>
  std::string operator()(const Info& info) const {
    return std::string(info.param->name);
  }
};

}  // namespace coppice::testing
