#include "coppice/families/routing_class.h"

#include <algorithm>

#include "coppice/base/check.h"
#include "coppice/base/text.h"

namespace coppice::families {

namespace {

using enum RoutingClass;

// How copies can be kept from being chosen.
constexpr std::string_view kLowerRouterBias =
    "if the router has a bias: the copies' biases are lowered so far that no logit can make up for it";
constexpr std::string_view kLowerSelectionBias =
    "if there is a selection bias: the copies' biases are lowered by more than 1 plus the spread of the biases";

constexpr RoutingClassInfo kClasses[] = {
    {kSoftmaxRenormalised, "S1", "softmax over all experts, top-K, renormalised", true, "", true, kLowerRouterBias},
    {kSoftmax, "S2", "softmax over all experts, top-K, not renormalised", false, "", true, kLowerRouterBias},
    {RoutingClass::kTopKSoftmax, "S3", "top-K of the logits, softmax over them", true, "", true, kLowerRouterBias},
    {kSigmoidRenormalised, "S4", "sigmoid, top-K by gate plus selection bias, renormalised", true, "", true,
     kLowerSelectionBias},
    {kSigmoid, "S5", "sigmoid, top-K, not renormalised", true,
     "routed_scaling_factor divided by m, or the down matrices if there is no such key", true, kLowerSelectionBias},
    {kSoftmaxBiased, "S6", "softmax over all experts, top-K by probability plus selection bias, renormalised", false,
     "the selection bias divided by m", true, ""},
    {kTrailingChoices, "S7", "softmax over experts and zero/skip choices", false, "", false, ""},
    {kSqrtSoftplus, "S8", "square root of softplus, top-K by gate plus selection bias, renormalised", true, "", true,
     ""},
    {kLogitBiased, "S9", "top-K by logit plus selection bias, sigmoid of the logit", true,
     "the down matrices divided by m, if gates are not renormalised", true, ""},
    {RoutingClass::kSharedChoices, "S10",
     "sigmoid, top-K by gate plus selection bias, renormalised together with the gates of shared experts", true, "",
     false, kLowerSelectionBias},
    {kSparseMixer, "sparsemixer", "two experts, the second chosen among the rest", false, "", false, ""},
    {kCapacity, "capacity", "softmax; each expert takes a limited number of tokens", false, "", false, ""},
    {kUnknown, "unknown", "unknown: the family file does not define it", false, "", false, ""},
};

}  // namespace

RoutingClass routing_class(const Routing& r) {
  switch (r.kind) {
    case RouterKind::kSparseMixer: return kSparseMixer;
    case RouterKind::kCapacity: return kCapacity;
    case RouterKind::kTrailingChoices: return kTrailingChoices;
    case RouterKind::kSharedChoices: return RoutingClass::kSharedChoices;
    case RouterKind::kPlain:
    case RouterKind::kScalesInput: break;
  }
  switch (r.gate) {
    case GateFunction::kUnknown: return RoutingClass::kUnknown;
    case GateFunction::kTopKSoftmax: return RoutingClass::kTopKSoftmax;
    case GateFunction::kSqrtSoftplusTopK: return kSqrtSoftplus;
    case GateFunction::kSigmoidTopK:
      if (r.bias_on_logits && r.has_selection_bias) return kLogitBiased;
      if (!r.renormalise_known) return RoutingClass::kUnknown;
      return r.renormalise ? kSigmoidRenormalised : kSigmoid;
    case GateFunction::kSoftmaxTopK: break;
  }
  if (r.has_selection_bias) return kSoftmaxBiased;
  if (!r.renormalise_known) return RoutingClass::kUnknown;
  return r.renormalise ? kSoftmaxRenormalised : kSoftmax;
}

std::string missing_routing_keys(const Routing& r) {
  std::vector<std::string> missing;
  if (r.gate == GateFunction::kUnknown) missing.emplace_back("gate");
  if (!r.renormalise_known) missing.emplace_back("renormalise");
  if (!r.group_score_known && r.num_groups > 1) missing.emplace_back("group_score");
  return join(missing, " and ");
}

std::vector<Routing> possible_routings(const Routing& routing) {
  std::vector<Routing> out;
  for (const bool renormalise : {false, true}) {
    for (const auto score : {GroupScore::kBestTwo, GroupScore::kBest}) {
      if (routing.renormalise_known && renormalise != routing.renormalise) continue;
      if (routing.group_score_known && score != routing.group_score) continue;
      Routing one = routing;
      one.renormalise = renormalise;
      one.group_score = score;
      one.renormalise_known = one.group_score_known = true;
      out.push_back(one);
    }
  }
  return out;
}

const RoutingClassInfo& routing_class_info(RoutingClass c) {
  const auto& info = kClasses[static_cast<size_t>(c)];
  COPPICE_CHECK(info.routing_class == c);
  return info;
}

Routing default_routing(const Family& family) {
  Routing r;
  r.gate = family.gate;
  r.kind = family.router;
  r.renormalise = family.renormalise.fallback;
  r.has_selection_bias = std::ranges::any_of(family.tensors, [](const TensorRule& rule) {
    return rule.role == Role::kSelectionBias && rule.when != When::kOptional;
  });
  r.has_router_bias = family.has_role(Role::kRouterBias);
  r.bias_on_logits = family.bias_on_logits;
  r.group_score = family.group_score;
  r.fixed_top_k = family.fixed_top_k > 0;
  r.trailing_choices = family.trailing_choices;
  return r;
}

std::string layout_text(const Family& family) {
  const auto rule_of = [&family](Role role) {
    return std::ranges::find_if(family.tensors, [role](const TensorRule& rule) { return rule.role == role; });
  };
  const auto down = rule_of(Role::kExpertDown), fused = rule_of(Role::kExpertGateUp);
  if (down == family.tensors.end()) return "no experts";
  if (down->per_expert()) return "a tensor for each expert";
  if (fused == family.tensors.end()) return "stacked [experts * out, in]";
  const auto gate = rule_of(Role::kExpertGate);
  if (gate != family.tensors.end() && gate->layout.stacked) return "stacked [experts, out, in], gate and up apart";
  return cat("stacked ", fused->layout.transposed ? "[experts, in, out]" : "[experts, out, in]", ", gate and up ",
             fused->layout.interleaved ? "interleaved" : "one after the other");
}

}  // namespace coppice::families
