// Rewrites config.json for an expanded model: existing keys are edited in place.

#include <cmath>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/config_reader_detail.h"
#include "coppice/families/count_keys_detail.h"
#include "coppice/families/model_config.h"
#include "coppice/families/quantization.h"
#include "coppice/families/router_keys_detail.h"

namespace coppice::families {
namespace {

using detail::Count;

// A key may be a path into an existing object: "ffn_config.moe_top_k".
void set(Json& sizes, std::string_view key, Json value) {
  if (Json* found = detail::find_path(sizes, key)) {
    *found = std::move(value);
  } else {
    sizes[key] = std::move(value);
  }
}

Json& text_section(Json& json, const ModelConfig& config) {
  return config.text_key.empty() ? json : *json.find(config.text_key);
}

/// The number that gives `divided` when divided by `factor`. Of all such numbers it is the one with the shortest text,
/// as people write it (2.827, while the quotient times 3 is 2.8270000000000004).
double undivided(double divided, double factor) {
  constexpr int kNeighbours = 4;
  const double product = divided * factor;
  double best = product, at = product;
  for (int i = 0; i < kNeighbours; ++i) at = std::nextafter(at, -std::numeric_limits<double>::infinity());
  for (int i = -kNeighbours; i <= kNeighbours; ++i) {
    if (at / factor == divided && Json(at).dump().size() < Json(best).dump().size()) best = at;
    at = std::nextafter(at, std::numeric_limits<double>::infinity());
  }
  return best;
}

/// Scales all names of the same setting.
void scale_groups(Json& sizes, std::string_view key, int64_t groups, const std::function<int64_t(int64_t)>& scale) {
  bool found = false;
  for (const std::string_view name : detail::aliases_of(key)) {
    Json* value = detail::find_path(sizes, name);
    if (value == nullptr || value->kind() != Json::Kind::kInt) continue;
    *value = Json(scale(value->as_int()));
    found = true;
  }
  if (!found) set(sizes, key, Json(scale(groups)));  // the code's own default, which is not that of the expanded model
}

}  // namespace

Json with_num_experts(const ModelConfig& config, int64_t num_experts) {
  COPPICE_CHECK(config.is_moe());
  Json json = config.json;
  detail::edit_count(json, config, Count::kExperts, [num_experts](int64_t) { return num_experts; });
  return with_expert_names(json, config.num_experts, num_experts);
}

Json with_top_k_factor(const ModelConfig& config, const TopKScaling& scaling) {
  const int64_t factor = scaling.factor;
  const Family& family = *config.family;
  if (family.top_k_key.empty() || family.fixed_top_k > 0) {
    throw Error(ErrorCode::kUnsupported,
                cat("top-k: ", family.model_type,
                    " has no configuration key for it, because its code fixes it (leave top-k out)"));
  }
  Json json = config.json;
  const auto scaler = [&](std::string_view key) {
    return [key, factor, back = scaling.back](int64_t value) {
      if (!back) return value * factor;
      if (value % factor == 0) return value / factor;
      throw Error(ErrorCode::kFormat, cat("config.json: '", key, "' is ", value, "; wanted a multiple of ", factor,
                                          ", by which the expansion had multiplied it"));
    };
  };
  detail::edit_count(json, config, Count::kTopK, scaler(family.top_k_key));
  Json& sizes = text_section(json, config);
  if (config.routing.num_groups > 1) {
    scale_groups(sizes, family.num_groups_key, config.routing.num_groups, scaler(family.num_groups_key));
    scale_groups(sizes, family.top_groups_key, config.routing.top_groups, scaler(family.top_groups_key));
  }
  const bool gates_add_up = config.routing.gate != GateFunction::kSigmoidTopK || config.routing.renormalise;
  if (scaling.copies && !gates_add_up && family.has_routed_scaling) {
    const auto by = static_cast<double>(factor);
    const double before = config.routing.routed_scaling;
    set(sizes, family.routed_scaling_key, Json(scaling.back ? undivided(before, by) : before / by));
  }
  return json;
}

Json with_expert_width(const ModelConfig& config, int64_t width) {
  const Family& family = *config.family;
  const bool has_dense = config.num_moe_layers() < config.num_layers;
  if (has_dense && family.expert_width_key == family.dense_width_key) {
    throw Error(ErrorCode::kUnsupported,
                cat("config.json: '", family.expert_width_key, "' is also the width of ", family.model_type,
                    "'s dense layers, so the width of experts cannot be changed"));
  }
  if (family.has_role(Role::kShared) && !family.has_shared()) {
    throw Error(ErrorCode::kUnsupported,
                cat("config.json: '", family.expert_width_key, "' is also the width of ", family.model_type,
                    "'s shared expert, so the width of experts cannot be changed"));
  }
  Json json = config.json;
  detail::edit_count(json, config, Count::kExpertWidth, [width](int64_t) { return width; });
  if (!family.shared_count_key.empty()) {
    Json* const count = detail::find_path(text_section(json, config), family.shared_count_key);
    const int64_t parts = config.expert_width / width;
    if (count != nullptr && count->kind() == Json::Kind::kInt) *count = Json(count->as_int() * parts);
  }
  return json;
}

}  // namespace coppice::families
