#include "coppice/convert/plan.h"

#include <algorithm>
#include <numeric>

#include "coppice/base/error.h"
#include "coppice/base/json_fields.h"
#include "coppice/base/text.h"
#include "coppice/convert/families.h"
#include "coppice/families/limits.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/new_router.h"

namespace coppice::convert {
namespace {

using families::Family;
using families::GateFunction;
using families::LayerPattern;
using families::Switch;
using methods::LayerPlan;

[[noreturn]] void refuse(std::string_view setting, std::string_view problem) {
  throw Error(ErrorCode::kUsage, cat(setting, ": ", problem));
}

void check_name(std::string_view setting, std::string_view name, std::vector<std::string> known) {
  if (std::ranges::find(known, name) == known.end())
    refuse(setting, cat("there is no '", name, "'", suggestion(name, known)));
}

void check_counts(const families::ModelConfig& config, const ConversionPlan& plan) {
  const int64_t width = config.dense_width, g = plan.granularity;
  if (g < 1) refuse("granularity", cat(g, " slices; wanted 1 or more"));
  if (plan.experts < 1 || plan.experts > families::kMaxExperts)
    refuse("experts", cat(plan.experts, "; wanted 1 to ", families::kMaxExperts));
  if (width % g != 0) {
    refuse("granularity",
           cat("a feed-forward width of ", width, " cannot be cut into ", g, " equal slices (choose a divisor)"));
  }
  if (plan.experts % g != 0) {
    refuse("experts", cat(plan.experts, " is not a multiple of the granularity, ", g,
                          ", so some slices would have fewer experts than others"));
  }
  if (plan.top_k < 1 || plan.top_k > plan.experts)
    refuse("top-k", cat(plan.top_k, " experts per token; wanted 1 to ", plan.experts));
  if (plan.virtual_groups && plan.top_k % g != 0) {
    refuse("top-k", cat(plan.top_k, " is not a multiple of the granularity, ", g,
                        ", so a token would get only a part of a virtual group (--no-virtual-group allows it)"));
  }
  if (plan.experts / g < plan.parents) {
    refuse("experts", cat(plan.experts, " slices of 1/", g, " are too few for ", plan.parents, " models; wanted ",
                          plan.parents * g, " or more"));
  }
  if (plan.shared_width < 0 || plan.shared_width > width)
    refuse("shared-expert", cat("a width of ", plan.shared_width, "; wanted 0 to the feed-forward width, ", width));
}

/// Chooses the order of softmax and top-K and whether gates are renormalised, from what the family supports.
void choose_routing(const Family& family, const std::optional<std::string>& wanted, ConversionPlan& plan) {
  if (wanted) check_name("routing", *wanted, {"softmax_topk", "topk_softmax"});
  const Switch& renormalise = family.renormalise;
  plan.renormalise = renormalise.fallback;
  switch (family.gate) {
    case GateFunction::kTopKSoftmax:
      plan.routing = "topk_softmax";
      plan.renormalise = false;
      break;
    case GateFunction::kSigmoidTopK:
      plan.routing = "sigmoid_topk";
      if (wanted) refuse("routing", cat("the gates of ", family.model_type, " are sigmoids (leave it out)"));
      return;
    case GateFunction::kSoftmaxTopK:
      // A softmax over the K chosen experts equals a softmax over all experts whose K gates are divided by their sum.
      if (wanted && renormalise.kind == Switch::Kind::kKey) plan.renormalise = *wanted == "topk_softmax";
      plan.routing = plan.renormalise ? "topk_softmax" : "softmax_topk";
      break;
    case GateFunction::kSqrtSoftplusTopK:
    case GateFunction::kUnknown:
      throw Error(ErrorCode::kUnsupported, cat("how the routers of ", family.model_type, " work is not known"));
  }
  if (!wanted || *wanted == plan.routing) return;
  refuse("routing", cat(family.model_type, " always computes ",
                        plan.routing == "topk_softmax" ? "gates that are a softmax over the chosen experts"
                                                       : "gates that are a softmax over all experts",
                        " (choose ", plan.routing, ", or another family)"));
}

std::vector<int64_t> chosen_layers(const families::ModelConfig& config, const ConversionOptions& options) {
  if (options.every && options.layers)
    refuse("layers", "--every already chooses the layers (leave one of the two out)");
  std::vector<int64_t> layers;
  if (options.layers) {
    layers = *options.layers;
    std::ranges::sort(layers);
    layers.erase(std::ranges::unique(layers).begin(), layers.end());
    if (layers.empty()) refuse("layers", "empty; wanted one or more layers");
    if (layers.front() < 0 || layers.back() >= config.num_layers) {
      refuse("layers",
             cat("layer ", layers.front() < 0 ? layers.front() : layers.back(), " of 0 to ", config.num_layers - 1));
    }
    return layers;
  }
  const int64_t every = options.every.value_or(1);
  if (every < 1 || every > config.num_layers)
    refuse("every", cat(every, "; wanted 1 to the number of layers, ", config.num_layers));
  for (int64_t layer = every - 1; layer < config.num_layers; layer += every) layers.push_back(layer);
  return layers;
}

void check_layers(const Family& family, int64_t num_layers, const std::vector<int64_t>& layers) {
  if (std::cmp_equal(layers.size(), num_layers) || family.layers == LayerPattern::kSparseStep) return;
  const bool is_tail = layers.front() + static_cast<int64_t>(layers.size()) == num_layers;
  if (family.layers == LayerPattern::kFirstDense && is_tail) return;
  refuse("layers", family.layers == LayerPattern::kFirstDense
                       ? cat(family.model_type,
                             " has its dense layers before those with experts; wanted the last layers of the model")
                       : cat("every layer of ", family.model_type,
                             " has experts; wanted all layers, or the family qwen2_moe or qwen3_moe"));
}

void check_shared(const Family& family, int64_t width, const ConversionPlan& plan) {
  if (plan.shared_width == 0) return;
  if (!family.has_shared()) refuse("shared-expert", cat(family.model_type, " has no shared expert (leave it out)"));
  const int64_t of_expert = width / plan.granularity;
  if (!family.shared_count_key.empty() && plan.shared_width % of_expert != 0) {
    refuse("shared-expert", cat(family.model_type, " gives its width as a number of experts of width ", of_expert,
                                "; wanted a multiple of that, not ", plan.shared_width));
  }
}

/// Group g has the slices of parent g mod P.
LayerPlan layer_plan(const ConversionPlan& plan, int64_t layer) {
  LayerPlan out{.layer = layer, .children = {}};
  for (int64_t expert = 0; expert < plan.experts; ++expert) {
    const int64_t group = expert / plan.granularity, slice = expert % plan.granularity;
    out.children.push_back({static_cast<uint32_t>(group % plan.parents * plan.granularity + slice),
                            static_cast<uint32_t>(group / plan.parents)});
  }
  return out;
}

void check_methods(const ConversionPlan& plan) {
  const methods::ExpertInit& method = methods::expert_init(plan.expert_init.name);
  (void)methods::Params(method.name, method.params, plan.expert_init.given);
  if (method.needs_partner && plan.slices() == 1) {
    refuse("expert-init",
           cat("'", method.name, "' mixes with another slice, but there is only one (choose another method)"));
  }
  const bool has_copies = plan.experts > plan.slices();
  if (!method.same_bytes && !has_copies && !plan.init_all) {
    refuse("expert-init",
           cat("'", method.name,
               "' changes copies of a slice, but each slice has only one expert (--init-all applies it to those)"));
  }
  if (plan.init_all && method.same_bytes)
    refuse("init-all", cat("it has no effect here; expert-init is '", method.name, "' (leave it out)"));
  const methods::NewRouter& router = methods::new_router(plan.router.name);
  (void)methods::Params(router.name, router.params, plan.router.given);
  if ((router.row == nullptr) != !plan.router_digest.empty()) {
    refuse("router", router.row == nullptr ? std::string("'rows' requires --router-rows with a file")
                                           : cat("'", router.name, "' and --router-rows exclude each other"));
  }
}

}  // namespace

const LayerPlan* ConversionPlan::find_layer(int64_t layer) const {
  const auto found = std::ranges::find(layers, layer, &LayerPlan::layer);
  return found == layers.end() ? nullptr : &*found;
}

void check_conversion_plan(const families::ModelConfig& config, const ConversionPlan& plan) {
  if (plan.from != config.family->model_type)
    refuse("from", cat("the plan is for ", plan.from, ", but the model is of ", config.family->model_type));
  const Family& family = families::family_of(moe_family(plan.to).model_type);
  check_name("trunk", plan.trunk, {"average", "first"});
  check_counts(config, plan);
  check_shared(family, config.dense_width, plan);
  check_methods(plan);
  ConversionPlan routed = plan;
  choose_routing(family, family.gate == GateFunction::kSigmoidTopK ? std::nullopt : std::optional(plan.routing),
                 routed);
  if (routed.routing != plan.routing || routed.renormalise != plan.renormalise)
    refuse("routing", cat(plan.to, " does not compute '", plan.routing, "' in this way"));
  std::vector<int64_t> layers;
  for (const LayerPlan& layer : plan.layers) layers.push_back(layer.layer);
  if (!std::ranges::is_sorted(layers) || layers.empty() || layers.back() >= config.num_layers)
    refuse("layers", cat("wanted layers of the model's ", config.num_layers, ", in rising order"));
  check_layers(family, config.num_layers, layers);
}

ConversionPlan make_conversion_plan(const families::ModelConfig& config, int64_t parents,
                                    const ConversionOptions& options) {
  ConversionPlan plan;
  plan.from = config.family->model_type;
  const DenseFamily& dense = dense_family(plan.from);
  const MoeFamily& moe = moe_family(options.to.value_or(std::string(dense.to)));
  const Family& family = families::family_of(moe.model_type);
  plan.to = moe.model_type;
  plan.seed = options.seed;
  plan.parents = parents;
  plan.granularity = options.granularity;
  plan.experts = options.experts.value_or(8 * plan.granularity);
  plan.top_k = options.top_k.value_or(2 * plan.granularity);
  plan.virtual_groups = options.virtual_groups;
  plan.expert_init = options.expert_init;
  plan.init_all = options.init_all;
  plan.router = options.router;
  plan.router_digest = options.router_digest;
  plan.shared_width = options.shared_width;
  plan.trunk = options.trunk;
  plan.lossy = options.lossy;
  choose_routing(family, options.routing, plan);
  for (const int64_t layer : chosen_layers(config, options)) plan.layers.push_back({.layer = layer, .children = {}});
  check_conversion_plan(config, plan);
  for (LayerPlan& layer : plan.layers) layer = layer_plan(plan, layer.layer);
  plan.scale = expert_scale(plan, options.scale, options.calibrate, config.model_dim);
  return plan;
}

ConversionPlan canonical(ConversionPlan plan) {
  plan.expert_init = complete(plan.expert_init, methods::expert_init(plan.expert_init.name).params);
  plan.router = complete(plan.router, methods::new_router(plan.router.name).params);
  return plan;
}

}  // namespace coppice::convert
