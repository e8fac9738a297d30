#include "coppice/plan/split.h"

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/plan/checks_detail.h"

namespace coppice::plan {
namespace {

void refuse(std::string_view setting, std::string_view value) {
  throw Error(ErrorCode::kUsage, cat(setting, ": '", value,
                                     "' cannot be used in a split, whose parts are slices of their parents (leave it "
                                     "out)"));
}

}  // namespace

GrowthPlan make_split_plan(const families::ModelConfig& config, const GrowthOptions& options) {
  const int64_t parts = options.split;
  if (config.expert_width <= 0) {
    throw Error(ErrorCode::kUnsupported,
                cat("split: config.json has no expert width under '", config.family->expert_width_key, "'"));
  }
  if (config.expert_width % parts != 0) {
    throw Error(ErrorCode::kUsage, cat("split: experts of ", config.expert_width, " units cannot be cut into ", parts,
                                       " equal parts (choose a divisor)"));
  }
  if (config.routing.num_groups > 1) {
    throw Error(ErrorCode::kUsage, cat("split: splitting would change the scores of the ", config.routing.num_groups,
                                       " router groups (not supported)"));
  }
  if (options.select) refuse("select", *options.select);
  if (options.max_duplicates) refuse("max-duplicates", cat(*options.max_duplicates));
  if (options.expert_init.name != "copy") refuse("expert-init", options.expert_init.name);
  if (options.router_init && options.router_init->name != "copy") refuse("router-init", options.router_init->name);
  if (options.optimizer_state.name != "copy") refuse("optimizer-state", options.optimizer_state.name);
  if (options.balance_bias != kBalanceBiasCopy) refuse("balance-bias", options.balance_bias);
  if (options.scale_top_k) refuse("top-k", "scale");
  if (options.allow_regroup) refuse("allow-regroup", "true");

  GrowthPlan plan;
  plan.seed = options.seed;
  plan.experts_before = config.num_experts;
  plan.experts_after = ExpertCount::from_text(cat(parts, "x")).resolve(config.num_experts);
  plan.order = options.order ? order_from_name(*options.order, "order") : Order::kAppend;
  plan.split = plan.top_k_factor = parts;
  set_factors(config, plan);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.moe_layer[static_cast<size_t>(layer)]) continue;
    methods::LayerPlan& layer_plan = plan.layers.emplace_back(methods::LayerPlan{.layer = layer, .children = {}});
    for (int64_t i = 0; i < plan.experts_after; ++i) {
      const int64_t parent = plan.order == Order::kAppend ? i % plan.experts_before : i / parts;
      const int64_t part = plan.order == Order::kAppend ? i / plan.experts_before : i % parts;
      layer_plan.children.push_back({static_cast<uint32_t>(parent), static_cast<uint32_t>(part)});
    }
  }
  check_plan(config, plan, false);
  return plan;
}

}  // namespace coppice::plan
