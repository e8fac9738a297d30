// A growth plan as JSON, and the checks that every plan file must pass.

#include <algorithm>
#include <array>

#include "coppice/base/error.h"
#include "coppice/base/find_row.h"
#include "coppice/base/json_fields.h"
#include "coppice/base/text.h"
#include "coppice/base/toml.h"
#include "coppice/families/limits.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"
#include "coppice/plan/checks_detail.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {
namespace {

using methods::LayerPlan;
using methods::MethodChoice;
using methods::Params;

constexpr int64_t kVersion = 1;

struct Named {
  std::string_view name;
};
struct NamedOrder {
  std::string_view name;
  Order order;
};
constexpr NamedOrder kOrders[] = {{"append", Order::kAppend}, {"siblings", Order::kSiblings}};
constexpr Named kBalanceBiases[] = {{kBalanceBiasCopy}, {kBalanceBiasZero}};

/// Keys of plan files that version 0.1.0 wrote and that now follow from the rest.
constexpr std::string_view kDerived[] = {"selection_bias_factor", "down_factor", "down_bias_factor"};

/// The children of one layer, from the list of their parents; the copies of a parent are numbered in their order.
LayerPlan read_layer(const JsonFields& parents, const std::string& key, const GrowthPlan& plan) {
  LayerPlan out;
  out.layer = methods::layer_from_key(key, parents.path_of(key));
  const auto& items = parents.array(key).items();
  if (items.size() != static_cast<size_t>(plan.experts_after)) {
    parents.fail(key, cat("layer ", key, " has ", items.size(), " experts; wanted ", plan.experts_after,
                          ", the number of every layer"));
  }
  std::vector<uint32_t> seen(static_cast<size_t>(plan.experts_before), 0);
  for (size_t i = 0; i < items.size(); ++i) {
    const int64_t parent =
        json_integer(items[i], cat(parents.path_of(key), ": layer ", key, ", expert ", i), 0, plan.experts_before - 1);
    out.children.push_back({static_cast<uint32_t>(parent), seen[static_cast<size_t>(parent)]++});
  }
  const auto missing = std::ranges::find(seen, 0u);
  if (missing != seen.end()) {
    parents.fail(key, cat("layer ", key, ": the original of expert ", missing - seen.begin(), " is missing"));
  }
  return out;
}

std::optional<MethodChoice> read_choice(const JsonFields& fields, std::string_view key) {
  if (!fields.has(key)) return std::nullopt;
  return MethodChoice::from_text(fields.text(key));
}

/// Reads the methods that are set for single layers; those layers must be in the plan.
void read_layer_methods(const JsonFields& fields, GrowthPlan& plan) {
  for (const auto& [key, unused] : fields.members()) {
    const int64_t number = methods::layer_from_key(key, fields.path_of(key));
    const auto layer = std::ranges::lower_bound(plan.layers, number, {}, &LayerPlan::layer);
    if (layer == plan.layers.end() || layer->layer != number) {
      fields.fail(key, cat("layer ", key, " has no parents in this plan"));
    }
    const JsonFields methods = fields.object(key);
    methods.expect_only({"expert_init", "router_init"});
    layer->expert_init = read_choice(methods, "expert_init");
    layer->router_init = read_choice(methods, "router_init");
  }
}

}  // namespace

std::string_view order_name(Order order) { return order == Order::kAppend ? "append" : "siblings"; }

Order order_from_name(std::string_view name, std::string_view subject) {
  return find_row(std::span<const NamedOrder>(kOrders), subject, name).order;
}

void check_balance_bias(std::string_view name, std::string_view subject) {
  (void)find_row(std::span<const Named>(kBalanceBiases), subject, name);
}

void check_methods(const GrowthPlan& plan) {
  (void)Params(plan.expert_init.name, methods::expert_init(plan.expert_init.name).params, plan.expert_init.given);
  (void)Params(plan.router_init.name, methods::router_init(plan.router_init.name).params, plan.router_init.given);
  (void)Params(plan.optimizer_state.name, methods::optimizer_init(plan.optimizer_state.name).params,
               plan.optimizer_state.given);
  for (const LayerPlan& layer : plan.layers) {
    if (const auto& own = layer.expert_init)
      (void)Params(own->name, methods::expert_init(own->name).params, own->given);
    if (const auto& own = layer.router_init)
      (void)Params(own->name, methods::router_init(own->name).params, own->given);
  }
}

Json GrowthPlan::to_json() const {
  Json out = Json::object();
  out["coppice_plan"] = Json(kVersion);
  out["seed"] = seed_json(seed);
  out["experts"] = Json::array({Json(experts_before), Json(experts_after)});
  out["order"] = order_name(order);
  out["select"] = select;
  Json& methods = out["methods"];
  methods["expert_init"] = expert_init.to_text();
  methods["router_init"] = router_init.to_text();
  methods["optimizer_state"] = optimizer_state.to_text();
  methods["balance_bias"] = balance_bias;
  if (top_k_factor != 1) out["top_k_factor"] = Json(top_k_factor);
  if (split != 1) out["split"] = Json(split);
  Json parents = Json::object(), own_methods = Json::object();
  for (const LayerPlan& layer_plan : layers) {
    const std::string key = std::to_string(layer_plan.layer);
    Json::Array of_layer;
    for (const methods::Child& child : layer_plan.children) of_layer.emplace_back(static_cast<int64_t>(child.parent));
    parents[key] = Json::array(std::move(of_layer));
    if (layer_plan.expert_init) own_methods[key]["expert_init"] = layer_plan.expert_init->to_text();
    if (layer_plan.router_init) own_methods[key]["router_init"] = layer_plan.router_init->to_text();
  }
  out["parents"] = std::move(parents);
  if (!own_methods.members().empty()) out["layer_methods"] = std::move(own_methods);
  return out;
}

GrowthPlan GrowthPlan::from_json(const Json& json, std::string_view source) {
  const JsonFields fields(json, std::string(source));
  fields.integer("coppice_plan", kVersion, kVersion);
  for (const std::string_view key : kDerived) {
    if (fields.has(key)) fields.fail(key, "is computed from the model and the rest of the plan (leave the line out)");
  }
  fields.expect_only({"coppice_plan", "seed", "experts", "order", "select", "methods", "top_k_factor", "split",
                      "parents", "layer_methods"});
  GrowthPlan plan;
  plan.seed = read_seed(fields);
  const auto& experts = fields.array("experts").items();
  if (experts.size() != 2) fields.fail("experts", "wanted [before, after]");
  plan.experts_before = json_integer(experts[0], fields.path_of("experts"), 1, families::kMaxExperts);
  plan.experts_after =
      json_integer(experts[1], fields.path_of("experts"), plan.experts_before + 1, families::kMaxExperts);
  plan.order = order_from_name(fields.text("order"), fields.path_of("order"));
  plan.select = fields.text("select");
  const JsonFields methods = fields.object("methods");
  methods.expect_only({"expert_init", "router_init", "optimizer_state", "balance_bias"});
  plan.expert_init = MethodChoice::from_text(methods.text("expert_init"));
  plan.router_init = MethodChoice::from_text(methods.text("router_init"));
  plan.optimizer_state = MethodChoice::from_text(methods.text("optimizer_state"));
  plan.balance_bias = methods.text("balance_bias");
  check_balance_bias(plan.balance_bias, methods.path_of("balance_bias"));
  if (fields.has("top_k_factor")) plan.top_k_factor = fields.integer("top_k_factor", 1, families::kMaxExperts);
  if (fields.has("split")) plan.split = fields.integer("split", 1, families::kMaxExperts);
  const JsonFields parents = fields.object("parents");
  for (const auto& [key, unused] : parents.members()) plan.layers.push_back(read_layer(parents, key, plan));
  if (plan.layers.empty()) fields.fail("parents", "has no layers");
  std::ranges::sort(plan.layers, {}, &LayerPlan::layer);  // TOML sorts them as text
  if (fields.has("layer_methods")) read_layer_methods(fields.object("layer_methods"), plan);
  check_methods(plan);
  return plan;
}

GrowthPlan GrowthPlan::read(const std::filesystem::path& path) { return from_json(read_toml(path), path.string()); }

GrowthPlan read_plan(const std::filesystem::path& path, const families::ModelConfig& config, bool allow_regroup) {
  GrowthPlan plan = GrowthPlan::read(path);
  set_factors(config, plan);
  check_plan(config, plan, allow_regroup);
  return plan;
}

}  // namespace coppice::plan
