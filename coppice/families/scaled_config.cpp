// Rewriting of config.json for a grown model: what is found is edited, wherever it stands.

#include <cmath>
#include <optional>
#include <set>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/config_reader_detail.h"
#include "coppice/families/count_keys_detail.h"
#include "coppice/families/model_config.h"
#include "coppice/families/quantization_detail.h"
#include "coppice/families/router_keys_detail.h"

namespace coppice::families {
namespace {

using detail::Count;

// A key may lead into an object that is there: "ffn_config.moe_top_k".
void set(Json& sizes, std::string_view key, Json value) {
  if (Json* found = detail::find_path(sizes, key)) {
    *found = std::move(value);
  } else {
    sizes[key] = std::move(value);
  }
}

Json& part_of(Json& json, const ModelConfig& config) {
  return config.text_key.empty() ? json : *json.find(config.text_key);
}

/// What, divided by `factor`, is `divided`: of all such numbers the one with the shortest text, since that is what
/// people write (2.827, where the quotient times 3 is 2.8270000000000004).
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

/// The number of an expert that a name in a quantisation's lists of modules has: where it begins and how long it is.
struct NumberedExpert {
  size_t at, length;
};
std::optional<NumberedExpert> numbered_expert(const std::string& name) {
  constexpr std::string_view kDigits = "0123456789";
  for (const std::string_view before : {".experts.", ".experts.expert_"}) {
    const size_t found = name.find(before);
    if (found == std::string::npos) continue;
    const size_t begin = found + before.size();
    const size_t end = std::min(name.find_first_not_of(kDigits, begin), name.size());
    if (end > begin && (end == name.size() || name[end] == '.')) return NumberedExpert{begin, end - begin};
  }
  return std::nullopt;
}

/// A list of modules that names every expert of a layer names the new ones too.
void add_new_experts(Json& list, const std::string& place, int64_t before, int64_t after) {
  std::set<std::string> names;
  for (const Json& item : list.items()) {
    if (item.is_string()) names.insert(item.as_string());
  }
  for (const std::string& name : names) {
    const auto number = numbered_expert(name);
    if (!number) continue;
    const auto named = [&](int64_t expert) {
      return std::string(name).replace(number->at, number->length, std::to_string(expert));
    };
    for (int64_t expert = 0; expert < before; ++expert) {
      if (names.contains(named(expert))) continue;
      throw Error(ErrorCode::kUnsupported, cat("config.json: '", place, "' names '", name, "' and not '", named(expert),
                                               "'; coppice grows models whose experts are all quantised alike"));
    }
    if (name != named(0)) continue;
    for (int64_t expert = before; expert < after; ++expert) list.push_back(Json(named(expert)));
  }
}

void add_new_experts_everywhere(Json& json, const std::string& place, int64_t before, int64_t after) {
  if (json.is_array()) add_new_experts(json, place, before, after);
  if (!json.is_object()) return;
  for (const auto& [key, value] : json.members())
    add_new_experts_everywhere(*json.find(key), cat(place, ".", key), before, after);
}

/// Names that the same setting goes by.
void scale_groups(Json& sizes, std::string_view key, int64_t groups, const std::function<int64_t(int64_t)>& scale) {
  bool found = false;
  for (const std::string_view name : detail::aliases_of(key)) {
    Json* value = detail::find_path(sizes, name);
    if (value == nullptr || value->kind() != Json::Kind::kInt) continue;
    *value = Json(scale(value->as_int()));
    found = true;
  }
  if (!found) set(sizes, key, Json(scale(groups)));  // the code's own default, which is not that of the grown model
}

}  // namespace

Json with_num_experts(const ModelConfig& config, int64_t num_experts) {
  COPPICE_CHECK(config.is_moe());
  Json json = config.json;
  detail::edit_count(json, config, Count::kExperts, [num_experts](int64_t) { return num_experts; });
  for (Json* object : {&json, config.text_key.empty() ? nullptr : json.find(config.text_key)}) {
    Json* quantization = object == nullptr ? nullptr : object->find("quantization_config");
    if (quantization == nullptr || num_experts <= config.num_experts) continue;
    add_new_experts_everywhere(*quantization, "quantization_config", config.num_experts, num_experts);
  }
  return json;
}

Json with_top_k_factor(const ModelConfig& config, const TopKScaling& scaling) {
  const int64_t factor = scaling.factor;
  const Family& family = *config.family;
  if (family.top_k_key.empty() || family.fixed_top_k > 0) {
    throw Error(
        ErrorCode::kUnsupported,
        cat("top-k: ", family.model_type, " has no configuration key for it, its code fixes it (leave it as it is)"));
  }
  Json json = config.json;
  const auto scaler = [&](std::string_view key) {
    return [key, factor, back = scaling.back](int64_t value) {
      if (!back) return value * factor;
      if (value % factor == 0) return value / factor;
      throw Error(ErrorCode::kFormat, cat("config.json: '", key, "' is ", value, "; wanted a multiple of ", factor,
                                          ", by which the expansion that is undone had multiplied it"));
    };
  };
  detail::edit_count(json, config, Count::kTopK, scaler(family.top_k_key));
  Json& sizes = part_of(json, config);
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
                cat("config.json: '", family.expert_width_key, "' is the width of ", family.model_type,
                    "'s dense layers too, so experts cannot have their own"));
  }
  if (family.has_role(Role::kShared) && !family.has_shared()) {
    throw Error(ErrorCode::kUnsupported,
                cat("config.json: '", family.expert_width_key, "' is the width of ", family.model_type,
                    "'s shared expert too, so experts cannot have their own"));
  }
  Json json = config.json;
  detail::edit_count(json, config, Count::kExpertWidth, [width](int64_t) { return width; });
  if (!family.shared_count_key.empty()) {
    Json* const count = detail::find_path(part_of(json, config), family.shared_count_key);
    const int64_t parts = config.expert_width / width;
    if (count != nullptr && count->kind() == Json::Kind::kInt) *count = Json(count->as_int() * parts);
  }
  return json;
}

}  // namespace coppice::families
