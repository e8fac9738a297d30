// Rewriting of config.json where more than the number of experts changes.

#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/config_reader_detail.h"
#include "coppice/families/model_config.h"

namespace coppice::families {
namespace {

// A key may lead into an object that is there: "ffn_config.moe_top_k".
void set(Json& sizes, std::string_view key, Json value) {
  if (Json* found = detail::find_path(sizes, key)) {
    *found = std::move(value);
  } else {
    sizes[key] = std::move(value);
  }
}

}  // namespace

Json with_top_k_factor(const ModelConfig& config, const TopKScaling& scaling) {
  const int64_t factor = scaling.factor;
  const Family& family = *config.family;
  if (family.top_k_key.empty() || family.fixed_top_k > 0) {
    throw Error(
        ErrorCode::kUnsupported,
        cat("top-k: ", family.model_type, " has no configuration key for it, its code fixes it (leave it as it is)"));
  }
  Json json = config.json;
  Json& sizes = config.text_key.empty() ? json : *json.find(config.text_key);
  const auto scale = [&](std::string_view key, int64_t value) {
    if (scaling.back && value % factor != 0) {
      throw Error(ErrorCode::kFormat, cat("config.json: '", key, "' is ", value, "; wanted a multiple of ", factor,
                                          ", by which the expansion that is undone had multiplied it"));
    }
    set(sizes, key, Json(scaling.back ? value / factor : value * factor));
  };
  scale(family.top_k_key, config.top_k);
  if (config.routing.num_groups > 1) {
    scale(family.num_groups_key, config.routing.num_groups);
    scale(family.top_groups_key, config.routing.top_groups);
  }
  const bool gates_add_up = config.routing.gate != GateFunction::kSigmoidTopK || config.routing.renormalise;
  if (scaling.copies && !gates_add_up && family.has_routed_scaling) {
    const auto by = static_cast<double>(factor);
    const double before = config.routing.routed_scaling;
    set(sizes, family.routed_scaling_key, Json(scaling.back ? before * by : before / by));
  }
  return json;
}

Json with_expert_width(const ModelConfig& config, int64_t width) {
  const Family& family = *config.family;
  const bool has_dense = config.num_moe_layers() < config.num_layers;
  if (has_dense && family.expert_width_key == family.dense_width_key) {
    throw Error(ErrorCode::kUnsupported,
                cat("config.json: '", family.expert_width_key, "' is the width of ", family.model_type,
                    "'s dense layers too, so experts cannot have their own"));
  }
  if (family.has_role(Role::kShared) && !family.has_shared()) {
    throw Error(ErrorCode::kUnsupported,
                cat("config.json: '", family.expert_width_key, "' is the width of ", family.model_type,
                    "'s shared expert too, so experts cannot have their own"));
  }
  Json json = config.json;
  Json& sizes = config.text_key.empty() ? json : *json.find(config.text_key);
  set(sizes, family.expert_width_key, Json(width));
  if (!family.shared_count_key.empty()) {
    if (Json* const count = detail::find_path(sizes, family.shared_count_key); count != nullptr && count->is_number())
      *count = Json(count->as_int() * (config.expert_width / width));
  }
  return json;
}

}  // namespace coppice::families
