// A conversion plan as JSON.

#include <limits>
#include <utility>

#include "coppice/base/json_fields.h"
#include "coppice/base/text.h"
#include "coppice/convert/plan.h"
#include "coppice/families/limits.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/new_router.h"

namespace coppice::convert {
namespace {

using methods::LayerPlan;

constexpr int64_t kVersion = 1;

double read_factor(const JsonFields& fields, std::string_view key) {
  const Json& value = fields.member(key);
  const double factor = value.is_number() ? value.as_double() : 0;
  if (!(factor > 0 && factor <= std::numeric_limits<float>::max()))
    fields.fail(key, cat("is ", value.dump(), "; wanted a factor above 0"));
  return factor;
}

bool read_flag(const JsonFields& fields, std::string_view key) {
  const Json& value = fields.member(key);
  if (value.kind() != Json::Kind::kBool) fields.fail(key, cat("is ", value.dump(), "; wanted true or false"));
  return value.as_bool();
}

LayerPlan read_layer(const JsonFields& parents, const std::string& key, const ConversionPlan& plan) {
  LayerPlan out;
  out.layer = methods::layer_from_key(key, parents.path_of(key));
  const auto& items = parents.array(key).items();
  if (std::cmp_not_equal(items.size(), plan.experts))
    parents.fail(key, cat("layer ", key, " has ", items.size(), " experts; wanted ", plan.experts));
  std::vector<uint32_t> seen(static_cast<size_t>(plan.slices()), 0);
  for (const Json& item : items) {
    const int64_t parent = json_integer(item, cat(parents.path_of(key), ": layer ", key), 0, plan.slices() - 1);
    out.children.push_back({static_cast<uint32_t>(parent), seen[static_cast<size_t>(parent)]++});
  }
  return out;
}

}  // namespace

Json ConversionPlan::to_json() const {
  Json out = Json::object();
  out["coppice_conversion"] = Json(kVersion);
  out["from"] = from;
  out["to"] = to;
  out["seed"] = seed_json(seed);
  out["parents"] = parents;
  out["experts"] = experts;
  out["top_k"] = top_k;
  out["granularity"] = granularity;
  out["virtual_groups"] = virtual_groups;
  out["routing"] = routing;
  out["renormalise"] = renormalise;
  out["scale"] = Json::object({{"gate", scale.gate}, {"up", scale.up}, {"down", scale.down}});
  out["expert_init"] = expert_init.to_text();
  out["init_all"] = init_all;
  out["router"] = router.to_text();
  out["router_digest"] = router_digest;
  out["shared_width"] = shared_width;
  out["trunk"] = trunk;
  out["lossy"] = lossy;
  Json of_layers = Json::object();
  for (const LayerPlan& layer : layers) {
    Json::Array of_layer;
    for (const methods::Child& child : layer.children) of_layer.emplace_back(static_cast<int64_t>(child.parent));
    of_layers[std::to_string(layer.layer)] = Json::array(std::move(of_layer));
  }
  out["layers"] = std::move(of_layers);
  return out;
}

ConversionPlan ConversionPlan::from_json(const Json& json, std::string_view source) {
  const JsonFields fields(json, std::string(source));
  fields.integer("coppice_conversion", kVersion, kVersion);
  fields.expect_only(
      {"coppice_conversion", "from",    "to",          "seed",  "parents",     "experts",  "top_k",  "granularity",
       "virtual_groups",     "routing", "renormalise", "scale", "expert_init", "init_all", "router", "router_digest",
       "shared_width",       "trunk",   "lossy",       "layers"});
  ConversionPlan plan;
  plan.from = fields.text("from");
  plan.to = fields.text("to");
  plan.seed = read_seed(fields);
  plan.parents = fields.integer("parents", 1, families::kMaxExperts);
  plan.experts = fields.integer("experts", 1, families::kMaxExperts);
  plan.top_k = fields.integer("top_k", 1, plan.experts);
  plan.granularity = fields.integer("granularity", 1, families::kMaxExperts);
  plan.virtual_groups = read_flag(fields, "virtual_groups");
  plan.routing = fields.text("routing");
  plan.renormalise = read_flag(fields, "renormalise");
  const JsonFields scale = fields.object("scale");
  scale.expect_only({"gate", "up", "down"});
  plan.scale = {read_factor(scale, "gate"), read_factor(scale, "up"), read_factor(scale, "down")};
  plan.expert_init = methods::MethodChoice::from_text(fields.text("expert_init"));
  plan.init_all = read_flag(fields, "init_all");
  plan.router = methods::MethodChoice::from_text(fields.text("router"));
  plan.router_digest = fields.text("router_digest");
  plan.shared_width = fields.integer("shared_width", 0, std::numeric_limits<int32_t>::max());
  plan.trunk = fields.text("trunk");
  plan.lossy = read_flag(fields, "lossy");
  (void)methods::Params(plan.expert_init.name, methods::expert_init(plan.expert_init.name).params,
                        plan.expert_init.given);
  (void)methods::Params(plan.router.name, methods::new_router(plan.router.name).params, plan.router.given);
  const JsonFields layers = fields.object("layers");
  if (plan.slices() > plan.experts || plan.experts % plan.granularity != 0)
    fields.fail("granularity", cat("does not fit ", plan.experts, " experts from ", plan.parents, " models"));
  for (const auto& [key, unused] : layers.members()) plan.layers.push_back(read_layer(layers, key, plan));
  if (plan.layers.empty()) fields.fail("layers", "is empty; wanted one or more layers");
  return plan;
}

}  // namespace coppice::convert
