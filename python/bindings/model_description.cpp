#include "python/bindings/model_description.h"

#include <array>
#include <set>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/find_row.h"
#include "coppice/base/json_fields.h"
#include "coppice/families/limits.h"
#include "coppice/families/packed_layout.h"
#include "coppice/output/tensors.h"

namespace coppice::python {
namespace {

using families::GateFunction;
using families::ModelConfig;

constexpr std::string_view kSource = "the model";

// The family of models that only their modules describe.
constexpr families::Family kModules{
    .model_type = "modules", .architecture = "", .tensors = {}, .layers = families::LayerPattern::kByWeights};

struct NamedGate {
  std::string_view name;
  GateFunction gate;
};
constexpr std::array kGates = {
    NamedGate{"softmax", GateFunction::kSoftmaxTopK}, NamedGate{"topk_softmax", GateFunction::kTopKSoftmax},
    NamedGate{"sigmoid", GateFunction::kSigmoidTopK}, NamedGate{"unknown", GateFunction::kUnknown}};

ModelConfig of_modules(const JsonFields& fields) {
  fields.expect_only({"num_layers", "moe_layers", "num_experts", "top_k", "expert_width", "gate", "renormalise",
                      "router_bias", "selection_bias", "num_groups", "top_groups"});
  ModelConfig out;
  out.family = &kModules;
  out.num_layers = fields.integer("num_layers", 1, families::kMaxLayers);
  out.num_experts = fields.integer("num_experts", 1, families::kMaxExperts);
  out.top_k = fields.integer("top_k", 1, out.num_experts);
  out.expert_width = fields.integer("expert_width", 1, int64_t{1} << 40);
  out.moe_layer.assign(static_cast<size_t>(out.num_layers), false);
  for (const Json& layer : fields.array("moe_layers").items()) {
    out.moe_layer[static_cast<size_t>(json_integer(layer, fields.path_of("moe_layers"), 0, out.num_layers - 1))] = true;
  }
  families::Routing& routing = out.routing;
  routing.gate = find_row(std::span<const NamedGate>(kGates), "gate", fields.text("gate")).gate;
  routing.renormalise = fields.boolean("renormalise");
  routing.has_router_bias = fields.boolean("router_bias");
  routing.has_selection_bias = fields.boolean("selection_bias");
  routing.num_groups = fields.integer("num_groups", 1, out.num_experts);
  routing.top_groups = fields.integer("top_groups", 1, routing.num_groups);
  return out;
}

}  // namespace

ModelDescription described_model(std::string_view text) {
  const Json json = Json::parse(text, kSource);
  const JsonFields fields(json, std::string(kSource));
  fields.expect_only({"config", "tensors", "modules"});
  ModelDescription out;
  if (fields.has("modules")) {
    out.config = of_modules(fields.object("modules"));
    return out;
  }
  out.config = families::read_config(json.at("config"), "config");
  if (!fields.has("tensors")) return out;
  std::vector<io::TensorInfo> tensors;
  for (const Json& item : fields.array("tensors").items()) {
    std::vector<int64_t> shape;
    for (const Json& size : item.items().at(1).items()) shape.push_back(size.as_int());
    tensors.push_back(output::tensor_info(item.items().at(0).as_string(), io::Dtype::kF32, shape));
  }
  out.slots = families::slots_in_memory(out.config, tensors);
  if (out.config.placed_by_weights()) families::fill_in_from(out.slots, out.config);
  std::set<int64_t> layers;
  for (const families::TensorSlot& slot : out.slots) {
    if (families::is_expert(slot.role())) layers.insert(slot.layer);
  }
  out.layers_with_experts.assign(layers.begin(), layers.end());
  return out;
}

}  // namespace coppice::python
