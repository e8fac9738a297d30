#include "coppice/plan/split.h"

#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/plan/checks_detail.h"

namespace coppice::plan {
namespace {

using families::Role;
using matrix::MatrixRows;

/// Throws   Error{kShape}: a layer whose experts have another width than the configuration says.
int64_t cut(const MatrixRows& parent, int64_t units, int64_t parts) {
  if (units % parts == 0) return units / parts;
  throw Error(ErrorCode::kShape, cat(parent.subject.empty() ? families::role_name(parent.role) : parent.subject, ": ",
                                     units, " units cannot be cut into ", parts, " equal parts (choose a divisor)"));
}

void refuse(std::string_view setting, std::string_view value) {
  throw Error(ErrorCode::kUsage, cat(setting, ": '", value,
                                     "' has no place in a split, whose parts are cut from their parents (leave it "
                                     "out)"));
}

}  // namespace

GrowthPlan make_split_plan(const families::ModelConfig& config, const GrowthOptions& options) {
  const int64_t parts = options.split;
  if (config.expert_width <= 0) {
    throw Error(ErrorCode::kUnsupported,
                cat("split: config.json has no width of experts under '", config.family->expert_width_key, "'"));
  }
  if (config.expert_width % parts != 0) {
    throw Error(ErrorCode::kUsage, cat("split: experts of ", config.expert_width, " units cannot be cut into ", parts,
                                       " equal parts (choose a divisor)"));
  }
  if (config.routing.num_groups > 1) {
    throw Error(ErrorCode::kUsage, cat("split: the scores of ", config.routing.num_groups,
                                       " router groups would change with parts in them (not supported)"));
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

MatrixRows part_of_expert(const GrowthPlan& plan, const methods::Child& child, const MatrixRows& parent,
                          double factor) {
  MatrixRows part = parent;
  int64_t first_row = 0;
  size_t first_col = 0;
  if (parent.role == Role::kExpertDown) {
    part.cols = cut(parent, parent.cols, plan.split);
    first_col = static_cast<size_t>(child.copy * part.cols);
  } else if (parent.role != Role::kExpertDownBias) {
    part.rows = cut(parent, parent.rows, plan.split);
    first_row = child.copy * part.rows;
  }
  part.read = [parent, first_row, first_col, factor, width = static_cast<size_t>(part.cols)](int64_t first,
                                                                                             std::span<float> out) {
    const size_t count = out.size() / width;
    std::vector<float> rows(count * static_cast<size_t>(parent.cols));
    parent.read(first_row + first, rows);
    for (size_t r = 0; r < count; ++r) {
      const auto from = std::span(rows).subspan(r * static_cast<size_t>(parent.cols) + first_col, width);
      std::ranges::transform(from, out.begin() + static_cast<std::ptrdiff_t>(r * width),
                             [factor](float x) { return static_cast<float>(factor * x); });
    }
  };
  return part;
}

}  // namespace coppice::plan
