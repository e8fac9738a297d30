// A growth plan as JSON, and the checks that a plan of any origin has to pass.

#include <charconv>
#include <limits>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/upcycle/expert_init.h"
#include "coppice/upcycle/json_fields_detail.h"
#include "coppice/upcycle/optimizer_init.h"
#include "coppice/upcycle/plan.h"
#include "coppice/upcycle/plan_detail.h"
#include "coppice/upcycle/router_init.h"
#include "coppice/upcycle/table_detail.h"

namespace coppice::upcycle {
namespace {

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

// JSON and TOML integers end at 2^63; a larger seed is written as text.
Json seed_json(uint64_t seed) {
  if (seed <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Json(static_cast<int64_t>(seed));
  return Json(std::to_string(seed));
}

uint64_t read_seed(const JsonFields& fields) {
  if (!fields.member("seed").is_string()) {
    return static_cast<uint64_t>(fields.integer("seed", 0, std::numeric_limits<int64_t>::max()));
  }
  const std::string text = fields.text("seed");
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || end != text.data() + text.size()) fields.fail("seed", "no number below 2^64");
  return seed;
}

/// children[i] of one layer from its two lists.
LayerPlan read_layer(const JsonFields& parents, const JsonFields& copies, const std::string& key,
                     const GrowthPlan& plan) {
  LayerPlan out;
  out.layer = layer_from_key(key, parents.path_of(key));
  const auto& parent_items = parents.array(key).items();
  const auto& copy_items = copies.array(key).items();
  const auto num_children = static_cast<size_t>(plan.experts_after);
  if (parent_items.size() != num_children) {
    parents.fail(key, cat("has ", parent_items.size(), " experts, not ", plan.experts_after));
  }
  if (copy_items.size() != num_children) {
    copies.fail(key, cat("has ", copy_items.size(), " experts, not ", plan.experts_after));
  }
  for (size_t i = 0; i < num_children; ++i) {
    const int64_t parent = json_integer(parent_items[i], parents.path_of(key), 0, plan.experts_before - 1);
    const int64_t copy = json_integer(copy_items[i], copies.path_of(key), 0, plan.experts_after - plan.experts_before);
    out.children.push_back({static_cast<uint32_t>(parent), static_cast<uint32_t>(copy)});
  }
  // The copies of a parent with r children are 0 (the original), 1, ..., r - 1, each once.
  const auto siblings = out.siblings(plan.experts_before);
  std::vector<std::vector<bool>> seen;
  for (const uint32_t count : siblings) seen.emplace_back(count, false);
  for (const Child& child : out.children) {
    auto& of_parent = seen[child.parent];
    if (child.copy >= of_parent.size() || of_parent[child.copy]) {
      copies.fail(key, cat("expert ", child.parent, " has ", of_parent.size(),
                           " children, whose copy numbers are not 0 (the original), 1, ... each once"));
    }
    of_parent[child.copy] = true;
  }
  for (size_t parent = 0; parent < seen.size(); ++parent) {
    if (seen[parent].empty()) parents.fail(key, cat("the original of expert ", parent, " is missing"));
  }
  return out;
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
  (void)Params(plan.expert_init.name, expert_init(plan.expert_init.name).params, plan.expert_init.given);
  (void)Params(plan.router_init.name, router_init(plan.router_init.name).params, plan.router_init.given);
  (void)Params(plan.optimizer_state.name, optimizer_init(plan.optimizer_state.name).params, plan.optimizer_state.given);
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
  Json parents = Json::object(), copies = Json::object();
  for (const LayerPlan& layer_plan : layers) {
    Json::Array layer_parents, layer_copies;
    for (const Child& child : layer_plan.children) {
      layer_parents.emplace_back(static_cast<int64_t>(child.parent));
      layer_copies.emplace_back(static_cast<int64_t>(child.copy));
    }
    parents[std::to_string(layer_plan.layer)] = Json::array(std::move(layer_parents));
    copies[std::to_string(layer_plan.layer)] = Json::array(std::move(layer_copies));
  }
  out["parents"] = std::move(parents);
  out["copies"] = std::move(copies);
  return out;
}

GrowthPlan GrowthPlan::from_json(const Json& json, std::string_view source) {
  const JsonFields fields(json, std::string(source));
  fields.integer("coppice_plan", kVersion, kVersion);
  GrowthPlan plan;
  plan.seed = read_seed(fields);
  const auto& experts = fields.array("experts").items();
  if (experts.size() != 2) fields.fail("experts", "not [before, after]");
  plan.experts_before = json_integer(experts[0], fields.path_of("experts"), 1, kMaxExperts);
  plan.experts_after = json_integer(experts[1], fields.path_of("experts"), plan.experts_before + 1, kMaxExperts);
  plan.order = order_from_name(fields.text("order"), fields.path_of("order"));
  plan.select = fields.text("select");
  const JsonFields methods = fields.object("methods");
  plan.expert_init = MethodChoice::from_text(methods.text("expert_init"));
  plan.router_init = MethodChoice::from_text(methods.text("router_init"));
  plan.optimizer_state = MethodChoice::from_text(methods.text("optimizer_state"));
  plan.balance_bias = methods.text("balance_bias");
  check_balance_bias(plan.balance_bias, methods.path_of("balance_bias"));
  check_methods(plan);

  const JsonFields parents = fields.object("parents"), copies = fields.object("copies");
  for (const auto& [key, unused] : parents.members()) {
    plan.layers.push_back(read_layer(parents, copies, key, plan));
    const size_t count = plan.layers.size();
    if (count > 1 && plan.layers[count - 2].layer >= plan.layers[count - 1].layer) {
      parents.fail(key, "layers are not in rising order");
    }
  }
  if (plan.layers.empty()) fields.fail("parents", "no layer");
  if (copies.members().size() != plan.layers.size()) fields.fail("copies", "has layers that 'parents' has not");
  return plan;
}

}  // namespace coppice::upcycle
