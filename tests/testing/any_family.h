#pragma once

// A checkpoint of any family of the table that has experts, also of those that coppice cannot make: every row of the
// table once in each layer, random values, the smallest sizes that tell experts, rows and dimensions apart.

#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/text.h"
#include "tests/testing/hand_made_models.h"
#include "tests/testing/tiny_models.h"

namespace coppice::testing {

namespace any_family_detail {

inline constexpr int64_t kExperts = 4, kModel = 8, kWidth = 6, kLayers = 2;

inline std::string filled(std::string name, int64_t layer, int64_t expert) {
  const auto put = [&name](std::string_view mark, const std::string& value) {
    for (size_t at = name.find(mark); at != std::string::npos; at = name.find(mark))
      name.replace(at, mark.size(), value);
  };
  put("{L}", std::to_string(layer));
  put("{M}", std::to_string(layer));
  put("{N}", "0");
  put("{X}", std::to_string(expert));
  put("**", "weight");
  put("*", "part");
  return name;
}

inline std::vector<int64_t> shape_of(const families::Family& family, const families::TensorRule& rule) {
  using enum families::Role;
  const int64_t rows = kExperts + family.trailing_choices;
  std::vector<int64_t> shape;
  switch (rule.role) {
    case kRouter:
    case kAttentionRouter: return {rows, kModel};
    case kRouterBias:
    case kSelectionBias:
    case kExpertScale: return {rows};
    case kExpertGate:
    case kExpertUp: shape = {kWidth, kModel}; break;
    case kExpertGateUp: shape = {2 * kWidth, kModel}; break;
    case kExpertDown: shape = {kModel, kWidth}; break;
    case kExpertGateBias:
    case kExpertUpBias: shape = {kWidth}; break;
    case kExpertGateUpBias: shape = {2 * kWidth}; break;
    case kExpertDownBias: shape = {kModel}; break;
    case kAttentionExpert: shape = {kWidth, kModel}; break;
    default: return {3};
  }
  if (rule.layout.transposed && shape.size() == 2) std::swap(shape[0], shape[1]);
  if (!rule.layout.stacked) return shape;
  if (family.model_type == "dbrx") return {kExperts * kWidth, kModel};  // [experts * width, model]
  shape.insert(shape.begin(), kExperts);
  return shape;
}

inline void set_key(Json& config, std::string_view path, Json value) {
  const size_t dot = path.find('.');
  if (dot == std::string_view::npos) {
    config[path] = std::move(value);
  } else {
    set_key(config[path.substr(0, dot)], path.substr(dot + 1), std::move(value));
  }
}

}  // namespace any_family_detail

/// Families of the table that have experts.
inline std::vector<std::string> moe_families() {
  std::vector<std::string> names;
  for (const families::Family* family : families::all_families()) {
    if (family->has_moe()) names.emplace_back(family->model_type);
  }
  return names;
}

/// Writes it into `directory` and returns it.
inline std::filesystem::path any_model(const std::filesystem::path& directory, std::string_view model_type) {
  using namespace any_family_detail;
  const families::Family& family = families::family_of(model_type);
  if (!family.surgery_only) {
    return tiny_model(directory, model_type, {.sizes = {.num_experts = kExperts}, .dtype = io::Dtype::kBf16});
  }
  Json config = Json::object({{"model_type", family.model_type}});
  set_key(config, family.layers_key, kLayers);
  set_key(config, family.model_dim_key, kModel);
  for (const std::string_view key : family.experts_keys) set_key(config, key, kExperts);
  if (!family.top_k_key.empty()) set_key(config, family.top_k_key, family.fixed_top_k > 0 ? family.fixed_top_k : 2);
  if (family.has_groups) {
    for (const std::string_view key : {family.num_groups_key, family.top_groups_key}) set_key(config, key, 1);
  }

  std::vector<HandMadeTensor> tensors;
  uint64_t number = 0;
  const auto add = [&](const families::TensorRule& rule, int64_t layer, int64_t expert) {
    const std::string name = filled(std::string(rule.name), layer, expert);
    const bool is_there = std::ranges::any_of(tensors, [&name](const auto& t) { return t.info.name == name; });
    if (!is_there) tensors.push_back(f32_tensor(name, shape_of(family, rule), ++number));
  };
  for (const families::TensorRule& rule : family.tensors) {
    for (int64_t layer = 0; layer < (rule.per_layer() ? kLayers : 1); ++layer) {
      for (int64_t expert = 0; expert < (rule.per_expert() ? kExperts : 1); ++expert) add(rule, layer, expert);
    }
  }
  return write_model(directory, config, tensors);
}

}  // namespace coppice::testing
