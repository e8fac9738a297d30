#include <algorithm>
#include <array>
#include <string>

#include "coppice/families/router_keys_detail.h"

namespace coppice::families::detail {

namespace {

constexpr std::array<std::string_view, 2> kAliases[] = {{"n_group", "num_expert_group"},
                                                        {"norm_topk_prob", "moe_renormalize"}};

constexpr std::string_view kScoreKeys[] = {
    "scoring_func",          "scoring_function",           "score_func",
    "score_function",        "moe_router_activation_func", "moe_router_score_function",
    "router_score_function", "expert_selection_fn"};

[[noreturn]] void refuse(const ConfigReader& in, std::string_view key, std::string_view why) {
  throw Error(ErrorCode::kUnsupported, cat(in.source(), ": '", key, "' is ", in.at(key).dump(), ", ", why));
}

bool is_softmax(GateFunction gate) { return gate == GateFunction::kSoftmaxTopK || gate == GateFunction::kTopKSoftmax; }

void check_score(const ConfigReader& in, std::string_view key, GateFunction gate) {
  const std::string value = in.text_or(key, "");
  const bool is_softplus = value == "sqrtsoftplus", wants_softplus = gate == GateFunction::kSqrtSoftplusTopK;
  if (is_softplus && wants_softplus) return;
  if (is_softplus || wants_softplus)
    refuse(in, key,
           wants_softplus ? "but this family's router uses sqrtsoftplus" : "which this family's router does not use");
  const bool is_sigmoid = value == "sigmoid" || value == "noaux_tc";  // released files of dots1 have the latter here
  if (!is_sigmoid && value != "softmax") refuse(in, key, "which coppice does not know; wanted softmax or sigmoid");
  if (is_sigmoid && is_softmax(gate)) refuse(in, key, "but this family's router uses a softmax");
  if (!is_sigmoid && gate == GateFunction::kSigmoidTopK) refuse(in, key, "but this family's router uses a sigmoid");
}

void check_method(const ConfigReader& in, const Family& family) {
  constexpr std::string_view kKey = "topk_method";
  const std::string value = in.text_or(kKey, "");
  const bool is_greedy = value == "greedy" || value == "group_limited_greedy";
  if (!is_greedy && value != "noaux_tc")
    refuse(in, kKey, "which coppice does not know; wanted noaux_tc, greedy or group_limited_greedy");
  const bool is_biased = family.has_role(Role::kSelectionBias);
  if (is_greedy && is_biased) refuse(in, kKey, "but this family's router chooses experts with a bias (noaux_tc)");
  if (!is_greedy && !is_biased) refuse(in, kKey, "but this family's router chooses experts without a bias");
}

bool is_flag(const Json* value) { return value != nullptr && value->kind() == Json::Kind::kBool; }

// Keys that a family file must name, because they change the sum of the outputs of copies.
void check_file(const ConfigReader& in, const Family& family, GateFunction gate) {
  const std::string_view norm_key = alias_present(in, "norm_topk_prob");
  const Json* norm = in.find(norm_key);
  const bool fixed_on = family.renormalise.kind == Switch::Kind::kYes;
  const bool fixed_off = family.renormalise.kind == Switch::Kind::kNo;
  if (is_flag(norm) && ((fixed_on && !norm->as_bool()) || (fixed_off && norm->as_bool()))) {
    refuse(
        in, norm_key,
        cat("but the family file says renormalise = ", fixed_on ? "true" : "false", " (write renormalise = { key = \"",
            norm_key, "\", default = ", fixed_on ? "true" : "false", " } there)"));
  }
  constexpr std::string_view kScaling = "routed_scaling_factor";
  const Json* scaling = in.find(kScaling);
  const bool scales = scaling != nullptr && scaling->is_number() && scaling->as_double() != 1.0;
  const bool whole_gates = gate == GateFunction::kSigmoidTopK && fixed_off;
  if (scales && whole_gates && !family.has_routed_scaling)
    refuse(in, kScaling, "but the family file does not name it (add routed_scaling_key there)");
  constexpr std::string_view kTrailing = "zero_expert_num";
  const Json* trailing = in.find(kTrailing);
  const bool trails = trailing != nullptr && trailing->is_number() && trailing->as_double() != 0.0;
  if (trails && family.trailing_key != kTrailing && family.trailing_choices == 0)
    refuse(in, kTrailing, "but the family file does not name it (add trailing_key there)");
}

}  // namespace

std::string_view alias_present(const ConfigReader& in, std::string_view key) {
  for (const auto& names : kAliases) {
    if (std::ranges::find(names, key) == names.end()) continue;
    const std::string_view other = names[names[0] == key ? 1 : 0];
    const Json *own = in.find(key), *alias = in.find(other);
    if (alias == nullptr) return key;
    if (own == nullptr) return other;
    if (*own != *alias)
      in.refuse(other, cat("the value of '", key, "', ", own->dump(), " (both mean the same; correct the wrong one)"));
  }
  return key;
}

std::vector<std::string_view> aliases_of(std::string_view key) {
  for (const auto& names : kAliases) {
    if (std::ranges::find(names, key) != names.end()) return {names.begin(), names.end()};
  }
  return {key};
}

double read_gate_norm(const ConfigReader& in, std::string_view key) {
  const Json* value = in.find_even_null(key);
  if (value == nullptr) return 1;
  if (value->is_null()) return 0;
  constexpr double kLargest = 1e6;
  const double p = in.number_or(key, 1, 0, kLargest);
  if (p == 0) in.refuse(key, "a number above 0, the p of the p-norm that gates are divided by, or null");
  return p;
}

void check_router_keys(const ConfigReader& in, const Family& family, GateFunction gate) {
  for (const std::string_view key : kScoreKeys) {
    if (in.find(key) != nullptr) check_score(in, key, gate);
  }
  if (in.find("topk_method") != nullptr) check_method(in, family);
  constexpr std::string_view kOnInput = "moe_apply_router_weight_on_input";
  if (in.flag_or(kOnInput, false) && family.router != RouterKind::kScalesInput)
    refuse(in, kOnInput, "but this family's gates multiply the outputs of experts");
  if (family.from_file) check_file(in, family, gate);
}

void check_no_groups(const ConfigReader& in, const Family& family) {
  if (family.from_file && family.says_groups) return;
  for (const std::string_view key : {"n_group", "num_expert_group", "n_expert_groups", "num_expert_groups"}) {
    const Json* value = in.find(key);
    if (value == nullptr || value->kind() != Json::Kind::kInt || value->as_int() <= 1) continue;
    if (!family.from_file) refuse(in, key, "but this family's router has no groups");
    refuse(in, key,
           "but the family file does not say whether the router has groups (add groups = true and the names of the "
           "keys, or groups = false if nothing reads this key)");
  }
}

}  // namespace coppice::families::detail
