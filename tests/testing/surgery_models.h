#pragma once

// Tiny models of families that coppice grows and does not make, from their tables: experts, what has a row for each of
// them, and one tensor beside.

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/families/family.h"
#include "tests/testing/hand_made_models.h"

namespace coppice::testing {

namespace surgery {

constexpr int64_t kExperts = 4, kModel = 8, kWidth = 6;

inline void replace_all(std::string& text, std::string_view mark, std::string_view by) {
  for (size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at + by.size()))
    text.replace(at, mark.size(), by);
}

inline std::string name_of(const families::TensorRule& rule, int64_t layer, int64_t expert) {
  std::string name(rule.name);
  for (const char* mark : {"{L}", "{M}"}) replace_all(name, mark, std::to_string(layer));
  replace_all(name, "{X}", std::to_string(expert));
  replace_all(name, "{N}", "0");
  replace_all(name, "**", "any");
  replace_all(name, "*", "any");
  return name;
}

inline std::vector<int64_t> shape_of(const families::TensorRule& rule, int64_t router_rows) {
  using families::Role;
  const auto [stacked, transposed, interleaved] = rule.layout;
  if (families::has_rows(rule.role)) {
    const bool matrix = rule.role == Role::kRouter || rule.role == Role::kAttentionRouter;
    return matrix ? std::vector<int64_t>{router_rows, kModel} : std::vector<int64_t>{router_rows};
  }
  const bool down = rule.role == Role::kExpertDown || rule.role == Role::kExpertDownBias;
  const bool fused = rule.role == Role::kExpertGateUp || rule.role == Role::kExpertGateUpBias;
  const int64_t out = down ? kModel : fused ? 2 * kWidth : kWidth, in = down ? kWidth : kModel;
  std::vector<int64_t> shape;
  if (stacked) shape.push_back(kExperts);
  if (families::is_bias(rule.role)) {
    shape.push_back(out);
  } else {
    shape.push_back(transposed ? in : out);
    shape.push_back(transposed ? out : in);
  }
  return shape;
}

inline void set_path(Json& json, std::string_view path, Json value) {
  const size_t dot = path.find('.');
  if (dot == std::string_view::npos) {
    json[path] = std::move(value);
  } else {
    set_path(json[path.substr(0, dot)], path.substr(dot + 1), std::move(value));
  }
}

}  // namespace surgery

/// Two layers of four experts of a family known for surgery only.
inline std::filesystem::path surgery_model(const std::filesystem::path& directory, const families::Family& family) {
  using namespace surgery;
  Json config = Json::object({{"model_type", Json(family.model_type)}});
  set_path(config, family.layers_key, Json(2));
  set_path(config, family.model_dim_key, Json(kModel));
  set_path(config, family.experts_keys.front(), Json(kExperts));
  if (!family.top_k_key.empty()) set_path(config, family.top_k_key, Json(2));
  if (family.has_groups) {
    for (const std::string_view key : {family.num_groups_key, family.top_groups_key}) set_path(config, key, Json(1));
  }
  const int64_t trailing = family.trailing_key.empty() ? family.trailing_choices : 0;
  std::vector<HandMadeTensor> tensors;
  uint64_t number = 1;
  for (const families::TensorRule& rule : family.tensors) {
    if (!families::is_expert(rule.role) && !families::has_rows(rule.role)) continue;
    if (rule.when == families::When::kOptional || rule.name.find("{M}") != std::string_view::npos) continue;
    for (int64_t layer = 0; layer < 2; ++layer) {
      for (int64_t expert = 0; expert < (rule.per_expert() ? kExperts : 1); ++expert)
        tensors.push_back(
            f32_tensor(surgery::name_of(rule, layer, expert), shape_of(rule, kExperts + trailing), number++));
    }
  }
  for (const families::TensorRule& rule : family.trunk) {
    if (rule.per_layer() || rule.role == families::Role::kLmHead || rule.role == families::Role::kEmbedding) continue;
    tensors.push_back(f32_tensor(surgery::name_of(rule, 0, 0), {kModel}, number++));
    break;
  }
  return write_model(directory, config, tensors);
}

}  // namespace coppice::testing
