#include "coppice/convert/pairs.h"

#include <algorithm>

#include "coppice/convert/families.h"
#include "coppice/convert/map.h"
#include "coppice/models/generate.h"

namespace coppice::convert {
namespace {

using families::Family;
using families::Switch;

Mapping map_example(const Family& family, std::string_view to, const Json& settings) {
  models::ModelSizes sizes;
  sizes.family = family.model_type;
  Json json = models::make_config(sizes, io::Dtype::kBf16);
  for (const auto& [key, value] : settings.members()) json[key] = value;
  const auto config = families::read_config(json, "example", &family);
  ConversionOptions options;
  options.to = to;
  return map_to_moe(config, families::expected_tensors(config), make_conversion_plan(config, 1, options));
}

std::vector<std::string> changes_of(const Mapping& mapping) {
  std::vector<std::string> changes;
  const auto has = [&](auto is) { return std::ranges::any_of(mapping.tensors, is); };
  if (has([](const MappedTensor& t) { return t.origin == Origin::kPlusOne; }))
    changes.emplace_back("norm weights plus 1");
  if (has([](const MappedTensor& t) { return t.origin == Origin::kEmbeddings; }))
    changes.emplace_back("embeddings times sqrt(hidden_size), and a separate head");
  const Json* multiplier = mapping.config.json.find("embedding_multiplier");
  if (multiplier != nullptr && multiplier->as_double() != 1) changes.emplace_back("embedding_multiplier");
  const auto is_zero_bias = [](const MappedTensor& t) {
    return t.origin == Origin::kZeros && families::component_of(t.slot.role()) == families::Component::kAttention;
  };
  if (has(is_zero_bias)) changes.emplace_back("biases of 0");
  return changes;
}

/// Settings that some models of the family have.
std::vector<std::pair<std::string_view, Json>> settings_of(const Family& family) {
  std::vector<std::pair<std::string_view, Json>> settings;
  for (const Switch* s : {&family.qkv_bias, &family.mlp_bias}) {
    if (s->kind == Switch::Kind::kKey) settings.emplace_back(s->key, Json::object({{std::string(s->key), Json(true)}}));
  }
  Json window = Json::object({{"sliding_window", Json(16)}});
  const bool is_switched = family.sliding_window_on.kind == Switch::Kind::kKey;
  if (family.sliding_window == families::SlidingWindow::kIfSet && !is_switched) {
    settings.emplace_back("sliding_window", window);
  }
  if (is_switched) {
    window["use_sliding_window"] = true;
    window["max_window_layers"] = 1;
    settings.emplace_back("use_sliding_window", window);
  }
  return settings;
}

/// The `losses` that are not in `known`.
std::vector<std::string> besides(std::vector<std::string> losses, const std::vector<std::string>& known) {
  std::erase_if(losses, [&](const std::string& loss) { return std::ranges::find(known, loss) != known.end(); });
  return losses;
}

}  // namespace

std::vector<ConversionPair> conversion_pairs() {
  std::vector<ConversionPair> pairs;
  for (const DenseFamily& dense : dense_families()) {
    const Family& family = families::family_of(dense.model_type);
    for (const MoeFamily& moe : moe_families()) {
      const Mapping plain = map_example(family, moe.model_type, Json::object());
      ConversionPair& pair = pairs.emplace_back(ConversionPair{.from = dense.model_type, .to = moe.model_type});
      pair.changes = changes_of(plain);
      pair.losses = plain.losses;
      for (const auto& [setting, json] : settings_of(family)) {
        auto losses = besides(map_example(family, moe.model_type, json).losses, plain.losses);
        if (!losses.empty()) pair.when.push_back({setting, std::move(losses)});
      }
    }
  }
  return pairs;
}

}  // namespace coppice::convert
