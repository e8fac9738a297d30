#include "coppice/grow/grown_model.h"

#include <algorithm>
#include <set>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/quantization.h"
#include "coppice/grow/grown_optimizer.h"
#include "coppice/grow/grown_weights.h"

namespace coppice::grow {

using plan::GrowthPlan;

namespace {

constexpr const char* kTensorNames = "tensor_names";  // torchao's list of tensors, as JSON

std::map<std::string, std::string> grown_metadata(const families::Model& model, const GrowthPlan& plan) {
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (!model.config.is_quantised()) return metadata;
  Json entries = Json::object();
  for (const auto& [key, value] : metadata_of(model.checkpoint))
    entries[key] = key == kTensorNames ? Json::parse(value, kTensorNames) : Json(value);
  const Json grown =
      families::with_expert_names(entries, plan.experts_before, plan.experts_after, "metadata of the weights");
  for (const auto& [key, value] : grown.members()) metadata[key] = value.is_string() ? value.as_string() : value.dump();
  return metadata;
}

}  // namespace

std::map<std::string, std::string> metadata_of(const io::Checkpoint& checkpoint) {
  std::map<std::string, std::string> all;
  std::set<std::string> texts, names;
  for (const io::SafetensorsFile& shard : checkpoint.shards()) {
    for (const auto& [key, value] : shard.metadata()) {
      all.emplace(key, value);
      if (key == kTensorNames) texts.insert(value);
    }
  }
  if (texts.size() < 2) return all;
  Json joined = Json::array();
  for (const std::string& text : texts) {
    for (const Json& name : Json::parse(text, kTensorNames).items()) {
      if (name.is_string() && names.insert(name.as_string()).second) joined.push_back(name);
    }
  }
  all[kTensorNames] = joined.dump();
  return all;
}

GrownModel::GrownModel(const families::Model& model, const GrowthPlan& given)
    : plan(with_all_layers(model, given)),
      config(plan.experts_after == plan.experts_before ? model.config.json : plan::grown_config(model.config, plan)),
      slots(grown_slots(model, plan)),
      state(models::OptimizerState::open(model)),
      weights(grown_weights(model, plan, slots, state ? &*state : nullptr)),
      metadata(grown_metadata(model, plan)) {
  (void)families::read_config(config, "config.json of the expanded model", model.config.family);
  if (state) optimizer = grown_optimizer(model, *state, plan, slots);
}

GrowthPlan unchanged_plan(const families::Model& model) {
  GrowthPlan plan;
  plan.experts_before = plan.experts_after = model.config.num_experts;
  std::vector<methods::Child> children;
  for (uint32_t expert = 0; expert < model.config.num_experts; ++expert) children.push_back({expert, 0});
  for (const int64_t layer : model.layers_with_experts) plan.layers.push_back({.layer = layer, .children = children});
  return plan;
}

}  // namespace coppice::grow
