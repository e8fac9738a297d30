#include "coppice/families/family_file.h"

#include <algorithm>
#include <array>
#include <deque>
#include <string>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/toml.h"
#include "coppice/families/limits.h"
#include "coppice/families/trunk_detail.h"

namespace coppice::families {

struct FamilyFile::State {
  std::deque<std::string> texts;  // storage of the family's views; a deque never moves its items
  std::vector<TensorRule> rules;
  std::vector<std::string_view> experts_keys;
  std::vector<Rename> memory_names;
  Family family{};

  std::vector<std::string_view> named_keys;

  std::string_view keep(const std::string& text) { return texts.emplace_back(text); }
  std::string_view name_key(const std::string& key) { return named_keys.emplace_back(keep(key)); }
};

namespace {

template <class Value>
struct KeyOf {
  std::string_view key;
  Value Family::* member;
};
template <class Value>
struct ValueName {
  std::string_view name;
  Value value;
};

constexpr KeyOf<std::string_view> kTextKeys[] = {
    {"model_type", &Family::model_type},
    {"architecture", &Family::architecture},
    {"layers_key", &Family::layers_key},
    {"model_dim_key", &Family::model_dim_key},
    {"top_k_key", &Family::top_k_key},
    {"expert_width_key", &Family::expert_width_key},
    {"dense_width_key", &Family::dense_width_key},
    {"shared_width_key", &Family::shared_width_key},
    {"shared_count_key", &Family::shared_count_key},
    {"trailing_key", &Family::trailing_key},
    {"gate_norm_key", &Family::gate_norm_key},
    {"sigmoid_key", &Family::sigmoid_key},
    {"num_groups_key", &Family::num_groups_key},
    {"top_groups_key", &Family::top_groups_key},
    {"groups_on_key", &Family::groups_on_key},
    {"groups_on_value", &Family::groups_on_value},
    {"routed_scaling_key", &Family::routed_scaling_key},
};
constexpr KeyOf<bool> kFlagKeys[] = {{"mtp", &Family::has_mtp},
                                     {"counts_by_layer", &Family::counts_by_layer},
                                     {"renormalises_top_1", &Family::renormalises_top_1},
                                     {"bias_on_logits", &Family::bias_on_logits},
                                     {"normalises_experts", &Family::normalises_experts}};
constexpr KeyOf<int64_t> kNumberKeys[] = {{"fixed_top_k", &Family::fixed_top_k},
                                          {"trailing_choices", &Family::trailing_choices},
                                          {"num_groups", &Family::num_groups_fallback},
                                          {"top_groups", &Family::top_groups_fallback}};
constexpr KeyOf<Switch> kSwitchKeys[] = {{"renormalise", &Family::renormalise},
                                         {"selection_bias_on", &Family::selection_bias_on}};
constexpr std::array<std::string_view, 10> kOtherKeys = {"like",    "experts_keys", "gate",         "router",
                                                         "groups",  "group_score",  "memory_names", "defaults",
                                                         "tensors", "decoder_trunk"};
constexpr std::array<std::string_view, 7> kTensorKeys = {"name",        "role",     "stacked",    "transposed",
                                                         "interleaved", "optional", "first_layer"};

constexpr ValueName<GateFunction> kGates[] = {{"softmax_topk", GateFunction::kSoftmaxTopK},
                                              {"topk_softmax", GateFunction::kTopKSoftmax},
                                              {"sigmoid_topk", GateFunction::kSigmoidTopK},
                                              {"sqrtsoftplus_topk", GateFunction::kSqrtSoftplusTopK},
                                              {"unknown", GateFunction::kUnknown}};
constexpr ValueName<RouterKind> kRouters[] = {{"plain", RouterKind::kPlain},
                                              {"scales_input", RouterKind::kScalesInput},
                                              {"sparse_mixer", RouterKind::kSparseMixer},
                                              {"capacity", RouterKind::kCapacity},
                                              {"trailing_choices", RouterKind::kTrailingChoices},
                                              {"shared_choices", RouterKind::kSharedChoices}};
constexpr ValueName<GroupScore> kGroupScores[] = {{"best_two", GroupScore::kBestTwo}, {"best", GroupScore::kBest}};

/// One table of the file; every error names the file and the place in it.
class Table {
 public:
  Table(const Json& json, std::string place) : json_(json), place_(std::move(place)) {}

  [[noreturn]] void refuse(std::string_view key, std::string_view what) const {
    throw Error(ErrorCode::kFormat, cat(place_, ": '", key, "' ", what));
  }
  void check_keys(const std::vector<std::string>& known) const {
    for (const auto& [key, value] : json_.members()) {
      if (std::find(known.begin(), known.end(), key) == known.end())
        refuse(key, cat("is not a key of a family", suggestion(key, known), "; known: ", join(known)));
    }
  }
  const Json* find(std::string_view key) const { return json_.find(key); }
  const std::string& text(std::string_view key) const {
    const Json* value = find(key);
    if (value == nullptr) refuse(key, "is missing");
    if (!value->is_string() || value->as_string().empty()) refuse(key, "is not text");
    return value->as_string();
  }
  bool flag(std::string_view key, bool fallback) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    if (value->kind() != Json::Kind::kBool) refuse(key, "is not true or false");
    return value->as_bool();
  }
  int64_t whole(std::string_view key) const {
    const Json* value = find(key);
    if (value->kind() != Json::Kind::kInt || value->as_int() < 0 || value->as_int() > kMaxExperts)
      refuse(key, cat("is ", value->dump(), "; wanted a whole number from 0 to ", kMaxExperts));
    return value->as_int();
  }
  /// One of the named values; `fallback` if the key is absent.
  template <class Value, size_t N>
  Value named(std::string_view key, const ValueName<Value> (&names)[N], Value fallback) const {
    if (find(key) == nullptr) return fallback;
    const std::string& name = text(key);
    const auto* found = std::ranges::find(names, std::string_view(name), &ValueName<Value>::name);
    if (found != std::end(names)) return found->value;
    std::vector<std::string> known;
    for (const auto& one : names) known.emplace_back(one.name);
    refuse(key, cat("is '", name, "'; wanted ", join(known), suggestion(name, known)));
  }

  const std::string& place() const { return place_; }

 private:
  const Json& json_;
  std::string place_;
};

Role role_from(const Table& table, const std::string& name) {
  std::vector<std::string> known;
  for (int i = 0; i < static_cast<int>(kNumRoles); ++i) {
    const auto role = static_cast<Role>(i);
    if (role == Role::kExpertShared || role == Role::kTiedCopy) continue;
    if (role_name(role) == name) return role;
    known.emplace_back(role_name(role));
  }
  table.refuse("role", cat("is '", name, "', which is not a role", suggestion(name, known), "; known: ", join(known)));
}

constexpr std::string_view kLateNumber = "has a wildcard before a number; wanted numbers before wildcards";

/// Whether a part between dots, other than the first, is a number.
bool has_number_behind(std::string_view name) {
  for (size_t dot = name.find('.'); dot != name.npos; dot = name.find('.', dot + 1)) {
    const std::string_view part = name.substr(dot + 1, name.find('.', dot + 1) - dot - 1);
    if (!part.empty() && part.find_first_not_of("0123456789") == part.npos) return true;
  }
  return false;
}

TensorRule rule_from(const Table& table, const std::string& name) {
  TensorRule rule{name, role_from(table, table.text("role"))};
  rule.layout = {.stacked = table.flag("stacked", false),
                 .transposed = table.flag("transposed", false),
                 .interleaved = table.flag("interleaved", false)};
  if (table.flag("optional", false)) rule.when = When::kOptional;
  if (table.find("first_layer") != nullptr) {
    rule.first_layer = table.whole("first_layer");
    if (rule.counts_from_last())
      table.refuse("first_layer", "has no effect beside {M}, which counts from the last layer");
  }
  const bool is_wild = name.find('*') != std::string::npos;
  const bool needs_place = is_expert(rule.role) || has_rows(rule.role);
  if (needs_place && (!rule.per_layer() || is_wild))
    table.refuse(
        "name",
        "must have {L} (or {M}, or first_layer) and no wildcard, because experts and routers are identified by layer");
  if (is_expert(rule.role) && rule.per_expert() == rule.layout.stacked)
    table.refuse("name", "must have {X}, or stacked = true if one tensor has all experts of a layer");
  for (size_t at = name.find('{'); at != std::string::npos; at = name.find('{', at + 1)) {
    const std::string_view mark = std::string_view(name).substr(at, 3);
    if (mark != "{L}" && mark != "{M}" && mark != "{X}" && mark != "{N}")
      table.refuse("name", cat("has '", mark, "'; wanted {L}, {M}, {X} or {N}"));
    if (name.find('*') < at) table.refuse("name", kLateNumber);
  }
  if (is_wild && has_number_behind(std::string_view(name).substr(name.find('*')))) table.refuse("name", kLateNumber);
  return rule;
}

using State = FamilyFile::State;

// true, false, a key of config.json, or { key = "norm_topk_prob", default = true }.
Switch switch_from(const Table& table, std::string_view key, State& state) {
  const Json& value = *table.find(key);
  if (value.is_string()) return Switch::read_or_unknown(state.name_key(value.as_string()));
  if (!value.is_object()) return table.flag(key, false) ? Switch::yes() : Switch{};
  const Table inner(value, cat(table.place(), ": ", key));
  inner.check_keys({"key", "default"});
  const std::string_view named = state.keep(inner.text("key"));
  if (inner.find("default") == nullptr) return Switch::read_or_unknown(named);
  return Switch::read(named, inner.flag("default", false));
}

void read_simple_keys(const Table& table, State& state) {
  Family& family = state.family;
  for (const auto& [key, member] : kTextKeys) {
    if (table.find(key) == nullptr) continue;
    family.*member = key.ends_with("_key") ? state.name_key(table.text(key)) : state.keep(table.text(key));
  }
  for (const auto& [key, member] : kFlagKeys) family.*member = table.flag(key, family.*member);
  for (const auto& [key, member] : kNumberKeys) {
    if (table.find(key) != nullptr) family.*member = table.whole(key);
  }
  for (const auto& [key, member] : kSwitchKeys) {
    if (table.find(key) != nullptr) family.*member = switch_from(table, key, state);
  }
  family.gate = table.named("gate", kGates, family.gate);
  family.router = table.named("router", kRouters, family.router);
  if (table.find("routed_scaling_key") != nullptr) family.has_routed_scaling = true;
  if (const Json* defaults = table.find("defaults")) {
    if (!defaults->is_object()) table.refuse("defaults", "is not a table of keys of config.json");
    family.left_out = state.keep(defaults->dump());
  }
}

void read_groups(const Table& table, Family& family) {
  if (table.find("groups") != nullptr) {
    family.says_groups = true;
    family.has_groups = table.flag("groups", false);
  }
  if (table.find("group_score") == nullptr) return;
  if (!family.has_groups) table.refuse("group_score", "has no effect without groups = true (leave it out)");
  family.group_score = table.named("group_score", kGroupScores, family.group_score);
  family.group_score_known = true;
}

void read_experts_keys(const Table& table, State& state) {
  const Json* keys = table.find("experts_keys");
  if (keys == nullptr && !state.family.experts_keys.empty()) return;  // those of `like`
  if (keys == nullptr || !keys->is_array() || keys->items().empty())
    table.refuse("experts_keys", "is missing; wanted a list of keys of config.json");
  for (const Json& key : keys->items()) {
    if (!key.is_string()) table.refuse("experts_keys", "has an item that is not text");
    state.experts_keys.push_back(state.keep(key.as_string()));
  }
  state.family.experts_keys = state.experts_keys;
}

void read_memory_names(const Table& table, State& state) {
  const Json* names = table.find("memory_names");
  if (names == nullptr) return;
  constexpr std::string_view kWanted = "is not a list of pairs of texts: [[\"name in the file\", \"name in memory\"]]";
  if (!names->is_array()) table.refuse("memory_names", kWanted);
  for (const Json& pair : names->items()) {
    const bool is_pair = pair.is_array() && pair.items().size() == 2 && pair.items()[0].is_string() &&
                         pair.items()[1].is_string() && !pair.items()[0].as_string().empty();
    if (!is_pair) table.refuse("memory_names", kWanted);
    state.memory_names.push_back({state.keep(pair.items()[0].as_string()), state.keep(pair.items()[1].as_string())});
  }
  state.family.memory_names = state.memory_names;
}

void read_tensors(const Table& table, std::string_view source, State& state) {
  Family& family = state.family;
  const Json* tensors = table.find("tensors");
  if (tensors == nullptr && !family.tensors.empty()) return;  // those of `like`
  if (tensors == nullptr || !tensors->is_array()) table.refuse("tensors", "is missing; wanted [[tensors]] tables");
  for (const Json& item : tensors->items()) {
    const Table row(item, cat(source, ": tensors[", state.rules.size(), "]"));
    row.check_keys({kTensorKeys.begin(), kTensorKeys.end()});
    state.rules.push_back(rule_from(row, row.text("name")));
    state.rules.back().name = state.keep(row.text("name"));
  }
  family.tensors = state.rules;
  if (!family.has_role(Role::kRouter)) table.refuse("tensors", "has no tensor with the role router");
  if (!family.has_role(Role::kExpertDown) && !family.has_role(Role::kExpertOther))
    table.refuse("tensors", "has no tensor with the role expert_down or expert_other");
}

std::vector<std::string> known_keys() {
  std::vector<std::string> known(kOtherKeys.begin(), kOtherKeys.end());
  const auto add = [&known](const auto& keys) {
    for (const auto& key : keys) known.emplace_back(key.key);
  };
  add(kTextKeys);
  add(kFlagKeys);
  add(kNumberKeys);
  add(kSwitchKeys);
  return known;
}

/// The family to start from: that of `like`, for expanding only, or one of which nothing is known.
Family start_from(const Table& table, const FamilyFile::Find& find) {
  Family family{};
  family.gate = GateFunction::kUnknown;
  family.renormalise = Switch::unknown();
  family.says_groups = family.group_score_known = false;
  if (table.find("like") != nullptr) {
    const Family* like = find(table.text("like"));
    if (like == nullptr) table.refuse("like", cat("is '", table.text("like"), "', which is not a family"));
    if (!like->has_moe()) table.refuse("like", cat("is '", table.text("like"), "', which has no experts"));
    family = *like;
  }
  family.surgery_only = family.from_file = true;
  family.layers = LayerPattern::kByWeights;
  family.trunk = {};
  return family;
}

}  // namespace

FamilyFile FamilyFile::read(const std::filesystem::path& path) { return from_json(read_toml(path), path.string()); }

FamilyFile FamilyFile::from_json(const Json& json, std::string_view source) {
  return from_json(json, source, find_family);
}

FamilyFile FamilyFile::from_json(const Json& json, std::string_view source, const Find& find) {
  auto state = std::make_unique<State>();
  Family& family = state->family;
  const Table table(json, std::string(source));
  table.check_keys(known_keys());
  (void)table.text("model_type");
  family = start_from(table, find);
  read_simple_keys(table, *state);
  if (family.top_k_key.empty() && family.fixed_top_k == 0) (void)table.text("top_k_key");
  read_groups(table, family);
  read_experts_keys(table, *state);
  read_memory_names(table, *state);
  if (table.flag("decoder_trunk", true)) family.trunk = detail::kDecoderTrunk;
  read_tensors(table, source, *state);
  family.named_keys = state->named_keys;
  return FamilyFile(std::move(state));
}

FamilyFile::FamilyFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
FamilyFile::FamilyFile(FamilyFile&&) noexcept = default;
FamilyFile& FamilyFile::operator=(FamilyFile&&) noexcept = default;
FamilyFile::~FamilyFile() = default;

const Family& FamilyFile::family() const { return state_->family; }
Family& FamilyFile::family() { return state_->family; }

}  // namespace coppice::families
