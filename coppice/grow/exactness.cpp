#include "coppice/grow/exactness.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/routing_class.h"
#include "coppice/grow/grown_layer_detail.h"
#include "coppice/grow/grown_weights.h"
#include "coppice/grow/lost_digits_detail.h"
#include "coppice/grow/never_chosen_detail.h"
#include "coppice/grow/tied_experts_detail.h"
#include "coppice/methods/expert_init.h"

namespace coppice::grow {
namespace {

using detail::Chosen;
using detail::GrownLayers;
using detail::LayerRouting;
using families::Model;
using families::Role;
using families::Routing;
using families::RoutingClass;
using methods::LayerPlan;
using plan::Exactness;
using plan::GrowthPlan;

constexpr double kShareRounding = 1e-7;  // of a parent's part of the softmax, which fp32 loses anyway

enum class Answer { kExact, kNotExact, kUnknown };

/// Of one layer: what comes behind "Exact", "Not exact: " or "Unknown: ".
struct Verdict {
  Answer answer = Answer::kUnknown;
  std::string text;
  bool siblings_compete = false;  ///< more slots would help
};
Verdict exact(std::string text) { return {Answer::kExact, std::move(text)}; }
Verdict not_exact(std::string text) { return {Answer::kNotExact, std::move(text)}; }
Verdict unknown(std::string text) { return {Answer::kUnknown, std::move(text)}; }

bool groups_limit_choice(const Routing& routing) {
  return routing.num_groups > 1 && routing.top_groups < routing.num_groups;
}

bool all_same(std::span<const float> values) {
  return std::ranges::all_of(values, [&](float x) { return x == values.front(); });
}

/// The verdict on one layer.
class LayerJudge {
 public:
  LayerJudge(const Model& model, const GrowthPlan& plan, const GrownLayers& grown, const LayerPlan& layer)
      : model_(model), plan_(plan), grown_(grown), layer_(layer), expert_method_(plan.expert_init_of(layer.layer)) {
    routing_.layer = &layer;
    routing_.experts_before = plan.experts_before;
    routing_.experts_after = plan.experts_after;
    routing_.top_k = model.config.top_k_of(layer.layer);
    routing_.weight = grown.rows(Role::kRouter, layer.layer).value_or(detail::GrownRows{});
    const Routing& routing = model.config.routing;  // a bias that the configuration turns off counts for nothing
    if (routing.has_router_bias) routing_.bias = grown.rows(Role::kRouterBias, layer.layer);
    if (routing.has_selection_bias) routing_.selection_bias = grown.rows(Role::kSelectionBias, layer.layer);
    for (const families::TensorSlot& slot : model.slots) {
      if (slot.role() != Role::kPostAttentionNorm || slot.layer != layer.layer) continue;
      routing_.input_scale = model.checkpoint.read_f32(slot.name);
      if (slot.rule->centred) std::ranges::for_each(routing_.input_scale, [](float& x) { x += 1; });
    }
  }

  Verdict judge(const Routing& routing) {
    routing_.routing = routing;
    Verdict verdict = plan_.top_k_factor > 1 ? judge_scaled(routing) : judge_plain(routing);
    if (verdict.answer != Answer::kExact) return verdict;
    const std::string ties = detail::decisive_ties(model_, plan_, routing_);
    return ties.empty() ? verdict : unknown(ties);
  }

 private:
  bool keep_function() {
    if (plan_.split > 1 || methods::expert_init(expert_method_.name).same_function) return true;
    if (!copies_) copies_ = grown_.experts_are_copies(layer_.layer);
    return *copies_;
  }
  Verdict other_experts() const {
    return not_exact(cat(
        expert_method_.to_text(),
        " gives the new experts other weights, so tokens that are routed to them get something else than from their "
        "parents."));
  }
  std::string router_methods() const {
    const std::string zero = plan_.balance_bias == plan::kBalanceBiasZero ? " with balance bias 'zero'" : "";
    return cat(plan_.router_init_of(layer_.layer).to_text(), zero);
  }

  /// A selection bias that is the same for all experts decides nothing.
  RoutingClass class_of(const Routing& routing) const {
    Routing effective = routing;
    const auto& bias = routing_.selection_bias;
    if (routing.gate == families::GateFunction::kSoftmaxTopK && bias && !bias->before.empty() && all_same(bias->before))
      effective.has_selection_bias = false;
    return families::routing_class(effective);
  }

  Verdict judge_plain(const Routing& routing) {
    const RoutingClass routing_class = class_of(routing);
    const auto softmax_divides = [] {
      return not_exact("softmax over more experts without renormalisation divides a token's gate among all siblings.");
    };
    const auto softmax_shrinks = [] {
      return not_exact(
          "softmax over more experts shrinks the probabilities that the selection bias is added to, so other experts "
          "may "
          "be chosen.");
    };
    if (routing_class == RoutingClass::kSparseMixer) {
      return not_exact(
          "the router always takes two experts, and a copy of the first is the nearest to it; no key of the "
          "configuration changes that.");
    }
    if (routing_class == RoutingClass::kTrailingChoices) {
      return not_exact(
          "the router's choices that are not experts keep one place each in the softmax, where every expert now has "
          "several.");
    }
    const Chosen chosen = detail::new_experts_chosen(routing_);
    if (routing_class == RoutingClass::kCapacity) {
      const bool never = chosen == Chosen::kNever && detail::softmax_share_of_copies(routing_) <= kShareRounding;
      if (!never && chosen != Chosen::kUnsure) {
        return not_exact(
            cat("the router always takes ", routing_.top_k == 1 ? "one expert" : "two experts",
                " by a softmax that divides among copies, and each expert turns tokens away past its capacity; "
                "no key of the configuration changes the former."));
      }
      if (never && capacity_follows_experts()) {
        return unknown(
            "no token is routed to a new expert, but config.json gives no capacity, which then follows from "
            "the number of experts.");
      }
    }
    if (chosen == Chosen::kNever) {
      if (routing_class == RoutingClass::kSoftmaxBiased) return softmax_shrinks();
      if (routing_class == RoutingClass::kSoftmax && detail::softmax_share_of_copies(routing_) > kShareRounding)
        return softmax_divides();
      return exact(
          ": no token is routed to a new expert, whose bias is far below the others', until training raises it");
    }
    if (chosen == Chosen::kUnsure) {
      const bool is_dormant = plan_.router_init_of(layer_.layer).name == "dormant";
      return unknown(
          cat("the biases of new experts are below their parents', but not so far that no score could make up for it",
              is_dormant ? ": nothing in the model bounds its scores enough."
                         : " (router-init dormant lowers them that far)."));
    }
    if (!keep_function()) return other_experts();
    if (routing_.top_k > 1) {
      const bool alike = routing_.scores_like_parents();
      return {Answer::kNotExact,
              cat("with top-", routing_.top_k, " routing the siblings of one parent ",
                  alike ? "score alike and take each other's slots" : "compete for the slots", ", where before ",
                  routing_.top_k, " different experts answered."),
              alike};
    }
    if (!routing_.scores_like_parents()) {
      return not_exact(
          cat(router_methods(), " moves the scores of new experts off their parents', so tokens can change experts."));
    }
    if (routing_class == RoutingClass::kSoftmax) return softmax_divides();
    if (routing_class == RoutingClass::kSoftmaxBiased) return softmax_shrinks();
    if (groups_limit_choice(routing) && routing.group_score == families::GroupScore::kBestTwo) {
      return not_exact(
          "a router group is scored by its two best experts, which may now be siblings, so other groups may be "
          "chosen.");
    }
    return exact(" up to rounding: top-1 routing picks a sibling with its parent's score, gate and function");
  }

  /// The code makes the number of tokens that an expert takes from the number of experts (nllb_moe).
  bool capacity_follows_experts() const {
    const Json* capacity = model_.config.json.find("expert_capacity");
    return capacity != nullptr && capacity->is_null();
  }

  /// Exact copies, or parts, fill the m * K slots with the m children of the K experts that answered before.
  Verdict judge_scaled(const Routing& routing) {
    const int64_t factor = plan_.top_k_factor;
    if (!keep_function()) return other_experts();
    if (!routing_.scores_like_parents()) {
      return not_exact(
          cat(router_methods(), " moves the scores of new experts off their parents', so the ", factor * routing_.top_k,
              " slots need not hold all siblings of the experts chosen before (router-init copy is exact)."));
    }
    if (groups_limit_choice(routing) && !groups_are_copies())
      return not_exact("a router group has experts that were of different groups before.");
    if (const std::string lost = lost_digits(); !lost.empty()) return not_exact(lost);
    if (plan_.split > 1) {
      return exact(cat(" up to rounding and ties of different experts: each expert's ", plan_.split,
                       " parts are chosen together and add up to it, at the same work per token"));
    }
    return exact(cat(" up to rounding and ties of different experts: ", factor, " times as many slots hold all ",
                     factor, " siblings of the ", routing_.top_k == 1 ? "expert" : cat(routing_.top_k, " experts"),
                     " chosen before, at ", factor, " times the active parameters"));
  }

  /// Each group holds a child of every expert of one group of before.
  bool groups_are_copies() const {
    const int64_t size = plan_.experts_before / routing_.routing.num_groups;
    std::map<int64_t, int64_t> times;  // a group of before: how often it is there
    for (int64_t first = 0; first < plan_.experts_after; first += size) {
      std::set<uint32_t> parents;
      for (int64_t i = first; i < first + size; ++i) parents.insert(layer_.children[static_cast<size_t>(i)].parent);
      const int64_t group = *parents.begin() / size;
      if (std::cmp_not_equal(parents.size(), size) || *parents.rbegin() / size != group) return false;
      ++times[group];
    }
    return std::ranges::all_of(times, [&](const auto& entry) { return entry.second == plan_.top_k_factor; });
  }

  /// What the plan's factors lose of stored values; empty if nothing that counts.
  std::string lost_digits() const {
    if (routing_.selection_bias) {
      const std::string lost = detail::lost_by_biases(*routing_.selection_bias, layer_, plan_.selection_bias_factor);
      if (!lost.empty()) return lost;
    }
    return detail::lost_by_experts(model_, plan_, layer_.layer);
  }

  const Model& model_;
  const GrowthPlan& plan_;
  const GrownLayers& grown_;
  const LayerPlan& layer_;
  const methods::MethodChoice expert_method_;
  LayerRouting routing_;
  std::optional<bool> copies_;
};

/// The layer's verdict where the family file leaves something open.
Verdict judge_layer(LayerJudge judge, const Routing& routing) {
  if (routing.gate == families::GateFunction::kUnknown && routing.kind == families::RouterKind::kPlain) {
    return unknown(cat("the family file does not say how the router chooses and weighs experts (`",
                       families::missing_routing_keys(routing), "`)."));
  }
  std::optional<Verdict> common;
  for (const Routing& one : families::possible_routings(routing)) {
    const Verdict verdict = judge.judge(one);
    if (common && common->answer != verdict.answer) {
      return unknown(
          cat("it depends on what the family file does not say (`", families::missing_routing_keys(routing), "`)."));
    }
    common = verdict;
  }
  return *common;
}

/// What else a top-K of m times as many experts takes.
std::string also_needed(const families::ModelConfig& config, const GrowthPlan& scaled) {
  if (scaled.down_factor != 1) return cat(", and the down matrices times ", number_text(scaled.down_factor), ",");
  if (scaled.selection_bias_factor != 1)
    return cat(", and the selection biases times ", number_text(scaled.selection_bias_factor), ",");
  const bool whole_gates = config.routing.gate == families::GateFunction::kSigmoidTopK && !config.routing.renormalise;
  return whole_gates ? cat(", and ", config.family->routed_scaling_key, " divided by ", scaled.top_k_factor, ",") : "";
}

Exactness without_remedy(const Model& model, const GrowthPlan& plan, bool& siblings_compete);

/// What would keep the function of a router that takes several experts: said only if it would.
std::string remedy(const Model& model, const GrowthPlan& plan) {
  if (plan.experts_after % plan.experts_before != 0) return {};
  GrowthPlan scaled = plan;
  scaled.top_k_factor = plan.experts_after / plan.experts_before;
  try {
    plan::set_factors(model.config, scaled);
    plan::check_plan(model.config, scaled, true);
    (void)families::read_config(plan::grown_config(model.config, scaled), "config.json", model.config.family);
    check_values(model, scaled);
    bool unused = false;
    if (!without_remedy(model, scaled, unused).exact) return {};
  } catch (const Error& error) {
    const bool no_such_growth = error.code == ErrorCode::kUsage || error.code == ErrorCode::kUnsupported;
    if (!no_such_growth) throw;
    return {};
  }
  const std::string top_k = model.config.top_k_by_layer.empty()
                                ? cat("top-", model.config.top_k * scaled.top_k_factor)
                                : cat(scaled.top_k_factor, " times the top-K of every layer");
  return cat(" With ", top_k, also_needed(model.config, scaled),
             " it would be exact (top-k scale), at the cost of as many more active experts.");
}

Exactness without_remedy(const Model& model, const GrowthPlan& plan, bool& siblings_compete) {
  const GrownLayers grown(model, plan);
  std::vector<std::string> kept;
  std::optional<Exactness> open;  // of the first layer that nothing is known of
  for (const LayerPlan& layer : plan.layers) {
    const Verdict verdict = judge_layer(LayerJudge(model, plan, grown, layer), model.config.routing);
    const std::string where = layer.layer == plan.layers.front().layer ? "" : cat("in layer ", layer.layer, ", ");
    switch (verdict.answer) {
      case Answer::kNotExact:
        siblings_compete = verdict.siblings_compete;
        return {false, cat("Not exact: ", where, verdict.text)};
      case Answer::kUnknown:
        if (!open) open = {false, cat("Unknown: ", where, verdict.text), false};
        break;
      case Answer::kExact:
        if (std::ranges::find(kept, verdict.text) == kept.end()) kept.push_back(verdict.text);
        break;
    }
  }
  return open ? *open : Exactness{true, cat("Exact", join(kept, "; in other layers exact"), ".")};
}

}  // namespace

Exactness growth_exactness(const Model& model, const GrowthPlan& plan) {
  if (plan.is_undo) {
    return {
        false,
        "Unknown: the experts that an expansion added are gone, with whatever they had learnt, which `coppice verify "
        "--function` can measure.",
        false};
  }
  bool siblings_compete = false;
  Exactness result = without_remedy(model, plan, siblings_compete);
  if (siblings_compete) result.reason += remedy(model, plan);
  return result;
}

}  // namespace coppice::grow
