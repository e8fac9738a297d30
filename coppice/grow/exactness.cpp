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

constexpr double kShareRounding = 1e-7;  // relative error that fp32 rounding causes anyway

enum class Answer { kExact, kNotExact, kUnknown };

/// The verdict on one layer and the text after "Exact", "Not exact: " or "Unknown: ".
struct Verdict {
  Answer answer = Answer::kUnknown;
  std::string text;
  bool siblings_compete = false;  ///< a larger top-K would make it exact
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
    const Routing& routing = model.config.routing;  // a bias that the configuration turns off is ignored
    if (routing.has_router_bias) routing_.bias = grown.rows(Role::kRouterBias, layer.layer);
    if (routing.has_selection_bias) routing_.selection_bias = grown.rows(Role::kSelectionBias, layer.layer);
    for (const families::TensorSlot& slot : model.slots) {
      if (slot.role() == Role::kExpertTable && slot.layer == layer.layer) by_table_ = true;
      if (slot.role() != Role::kPostAttentionNorm || slot.layer != layer.layer) continue;
      routing_.input_scale = model.checkpoint.read_f32(slot.name);
      if (slot.rule->centred) std::ranges::for_each(routing_.input_scale, [](float& x) { x += 1; });
    }
  }

  Verdict judge(const Routing& routing) {
    routing_.routing = routing;
    if (by_table_ && routing_.originals_unchanged())
      return exact(": a table of tokens names the experts, and it names original ones only");
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
    return not_exact(
        cat(expert_method_.to_text(),
            " changes the weights of new experts, so tokens that are routed to them get another output than from their "
            "parents."));
  }
  std::string router_methods() const {
    const std::string zero = plan_.balance_bias == plan::kBalanceBiasZero ? " with balance bias 'zero'" : "";
    return cat(plan_.router_init_of(layer_.layer).to_text(), zero);
  }

  /// A selection bias that is equal for all experts does not change which experts are chosen.
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
      return not_exact("a softmax without renormalisation divides a token's gate among all siblings.");
    };
    const auto softmax_shrinks = [] {
      return not_exact(
          "a softmax over more experts has smaller probabilities, to which the selection bias is added, so other "
          "experts may be chosen.");
    };
    if (routing_class == RoutingClass::kSparseMixer) {
      return not_exact(
          "the router always chooses two experts, and after the first expert it prefers its copy; no key of "
          "config.json changes that.");
    }
    if (routing_class == RoutingClass::kTrailingChoices) {
      return not_exact(
          "the zero/skip choices of the router are not duplicated, so they get a smaller share of the softmax than "
          "before.");
    }
    const Chosen chosen = detail::new_experts_chosen(routing_);
    if (routing_class == RoutingClass::kCapacity) {
      const bool never = chosen == Chosen::kNever && detail::softmax_share_of_copies(routing_) <= kShareRounding;
      if (!never && chosen != Chosen::kUnsure) {
        return not_exact(cat("the router always takes ", routing_.top_k == 1 ? "one expert" : "two experts",
                             " by a softmax that is divided among copies, and an expert drops tokens beyond its "
                             "capacity; no key of config.json changes how many experts are chosen."));
      }
      if (never && capacity_follows_experts()) {
        return unknown(
            "no token is routed to a new expert, but config.json gives no capacity, which is then computed from the "
            "number of experts.");
      }
    }
    if (chosen == Chosen::kNever) {
      if (routing_class == RoutingClass::kSoftmaxBiased) return softmax_shrinks();
      if (routing_class == RoutingClass::kSoftmax && detail::softmax_share_of_copies(routing_) > kShareRounding)
        return softmax_divides();
      return exact(
          ": no token is routed to a new expert, because its bias is far below the others' (until training raises it)");
    }
    if (chosen == Chosen::kUnsure) {
      const bool is_dormant = plan_.router_init_of(layer_.layer).name == "dormant";
      return unknown(cat(
          "the biases of new experts are below their parents', but not so far that no token can choose a new expert",
          is_dormant ? ": the scores of this model have no sufficient bound."
                     : " (router-init dormant lowers them that far)."));
    }
    if (!keep_function()) return other_experts();
    if (routing_.top_k > 1) {
      const bool alike = routing_.scores_like_parents();
      return {Answer::kNotExact,
              cat("with top-", routing_.top_k, ", a copy ", alike ? "has its parent's score and " : "",
                  "can take the place of one of the ", routing_.top_k, " different experts that worked before."),
              alike};
    }
    if (!routing_.scores_like_parents()) {
      return not_exact(
          cat(router_methods(), " changes the scores of new experts, so tokens can be routed to other experts."));
    }
    if (routing_class == RoutingClass::kSoftmax) return softmax_divides();
    if (routing_class == RoutingClass::kSoftmaxBiased) return softmax_shrinks();
    if (groups_limit_choice(routing) && routing.group_score == families::GroupScore::kBestTwo) {
      return not_exact(
          "a router group is scored by its two best experts, which may now be a parent and its copy, so other groups "
          "may be chosen.");
    }
    return exact(" up to rounding: with top-1, the chosen copy has the score, gate and function of its parent");
  }

  /// Whether the model's code computes the capacity of an expert from the number of experts (nllb_moe).
  bool capacity_follows_experts() const {
    const Json* capacity = model_.config.json.find("expert_capacity");
    return capacity != nullptr && capacity->is_null();
  }

  /// With exact copies, or parts, the m * K chosen experts are the m children of the K experts that were chosen before.
  Verdict judge_scaled(const Routing& routing) {
    const int64_t factor = plan_.top_k_factor;
    if (!keep_function()) return other_experts();
    if (!routing_.scores_like_parents()) {
      return not_exact(cat(
          router_methods(), " changes the scores of new experts, so the ", factor * routing_.top_k,
          " chosen experts may not be the experts chosen before with all their copies (router-init copy is exact)."));
    }
    if (groups_limit_choice(routing) && !groups_are_copies())
      return not_exact("a router group has experts that were in different groups before.");
    if (const std::string lost = lost_digits(); !lost.empty()) return not_exact(lost);
    if (plan_.split > 1) {
      return exact(cat(" up to rounding and ties of different experts: each expert's ", plan_.split,
                       " parts are chosen together and add up to it, with the same work per token"));
    }
    return exact(cat(" up to rounding and ties of different experts: a ", factor, " times larger top-K chooses the ",
                     routing_.top_k == 1 ? "expert" : cat(routing_.top_k, " experts"),
                     " chosen before with all copies, at ", factor, " times the active parameters"));
  }

  /// Whether each group has one child of every expert of one earlier group.
  bool groups_are_copies() const {
    const int64_t size = plan_.experts_before / routing_.routing.num_groups;
    std::map<int64_t, int64_t> times;  // earlier group -> number of groups made from it
    for (int64_t first = 0; first < plan_.experts_after; first += size) {
      std::set<uint32_t> parents;
      for (int64_t i = first; i < first + size; ++i) parents.insert(layer_.children[static_cast<size_t>(i)].parent);
      const int64_t group = *parents.begin() / size;
      if (std::cmp_not_equal(parents.size(), size) || *parents.rbegin() / size != group) return false;
      ++times[group];
    }
    return std::ranges::all_of(times, [&](const auto& entry) { return entry.second == plan_.top_k_factor; });
  }

  /// Describes the precision that stored values lose by the plan's factors; empty if it is negligible.
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
  bool by_table_ = false;  // tokens do not choose experts in this layer
  std::optional<bool> copies_;
};

/// The layer's verdict if the family file does not describe the routing completely.
Verdict judge_layer(LayerJudge judge, const Routing& routing) {
  if (routing.gate == families::GateFunction::kUnknown && routing.kind == families::RouterKind::kPlain) {
    return unknown(cat("the family file does not say how the router chooses experts and computes gates (`",
                       families::missing_routing_keys(routing), "`)."));
  }
  std::optional<Verdict> common;
  for (const Routing& one : families::possible_routings(routing)) {
    const Verdict verdict = judge.judge(one);
    if (common && common->answer != verdict.answer) {
      return unknown(cat("it depends on keys that the family file does not have (`",
                         families::missing_routing_keys(routing), "`)."));
    }
    common = verdict;
  }
  return *common;
}

/// What else must be changed if top-K is multiplied by m.
std::string also_needed(const families::ModelConfig& config, const GrowthPlan& scaled) {
  if (scaled.down_factor != 1) return cat(", and the down matrices times ", number_text(scaled.down_factor), ",");
  if (scaled.selection_bias_factor != 1)
    return cat(", and the selection biases times ", number_text(scaled.selection_bias_factor), ",");
  const bool whole_gates = config.routing.gate == families::GateFunction::kSigmoidTopK && !config.routing.renormalise;
  return whole_gates ? cat(", and ", config.family->routed_scaling_key, " divided by ", scaled.top_k_factor, ",") : "";
}

Exactness without_remedy(const Model& model, const GrowthPlan& plan, bool& siblings_compete);

/// Advice how a larger top-K keeps the function; empty if it would not.
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
             " it would be exact (--top-k scale), with that many times more active experts.");
}

Exactness without_remedy(const Model& model, const GrowthPlan& plan, bool& siblings_compete) {
  const GrownLayers grown(model, plan);
  std::vector<std::string> kept;
  std::optional<Exactness> open;  // for the first layer that cannot be decided
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
    return {false,
            "Unknown: the undo removes the added experts and what they learnt; `coppice verify --function` can measure "
            "the effect.",
            false};
  }
  bool siblings_compete = false;
  Exactness result = without_remedy(model, plan, siblings_compete);
  if (siblings_compete) result.reason += remedy(model, plan);
  return result;
}

}  // namespace coppice::grow
