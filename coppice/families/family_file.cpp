#include "coppice/families/family_file.h"

#include <algorithm>
#include <array>
#include <deque>
#include <string>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/toml.h"
#include "coppice/families/trunk_detail.h"

namespace coppice::families {

struct FamilyFile::State {
  std::deque<std::string> texts;  // storage of the family's views; a deque never moves its items
  std::vector<TensorRule> rules;
  std::vector<std::string_view> experts_keys;
  Family family{};

  std::string_view keep(const std::string& text) { return texts.emplace_back(text); }
};

namespace {

struct TextKey {
  std::string_view key;
  std::string_view Family::* member;
};
constexpr TextKey kTextKeys[] = {
    {"model_type", &Family::model_type},
    {"architecture", &Family::architecture},
    {"layers_key", &Family::layers_key},
    {"model_dim_key", &Family::model_dim_key},
    {"top_k_key", &Family::top_k_key},
    {"expert_width_key", &Family::expert_width_key},
    {"dense_width_key", &Family::dense_width_key},
    {"trailing_key", &Family::trailing_key},
    {"num_groups_key", &Family::num_groups_key},
    {"top_groups_key", &Family::top_groups_key},
    {"routed_scaling_key", &Family::routed_scaling_key},
};
constexpr std::array<std::string_view, 8> kOtherKeys = {"experts_keys", "gate", "renormalise", "groups",
                                                        "group_score",  "mtp",  "tensors",     "decoder_trunk"};
constexpr std::array<std::string_view, 6> kTensorKeys = {"name",       "role",        "stacked",
                                                         "transposed", "interleaved", "optional"};

struct GateName {
  std::string_view name;
  GateFunction gate;
};
constexpr GateName kGates[] = {{"softmax_topk", GateFunction::kSoftmaxTopK},
                               {"topk_softmax", GateFunction::kTopKSoftmax},
                               {"sigmoid_topk", GateFunction::kSigmoidTopK}};

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

 private:
  const Json& json_;
  std::string place_;
};

Role role_from(const Table& table, const std::string& name) {
  std::vector<std::string> known;
  for (int i = 0; i <= static_cast<int>(Role::kOther); ++i) {
    const auto role = static_cast<Role>(i);
    if (role == Role::kExpertShared) continue;
    if (role_name(role) == name) return role;
    known.emplace_back(role_name(role));
  }
  table.refuse("role", cat("is '", name, "', which is not a role", suggestion(name, known), "; known: ", join(known)));
}

TensorRule rule_from(const Table& table, const std::string& name) {
  TensorRule rule{name, role_from(table, table.text("role"))};
  rule.layout = {.stacked = table.flag("stacked", false),
                 .transposed = table.flag("transposed", false),
                 .interleaved = table.flag("interleaved", false)};
  if (table.flag("optional", false)) rule.when = When::kOptional;
  const bool is_wild = name.find('*') != std::string::npos;
  const bool needs_place = is_expert(rule.role) || has_rows(rule.role);
  if (needs_place && (!rule.per_layer() || is_wild))
    table.refuse("name", "must have {L} (or {M}) and no wildcard, because experts and routers are identified by layer");
  if (is_expert(rule.role) && rule.per_expert() == rule.layout.stacked)
    table.refuse("name", "must have {X}, or stacked = true if one tensor has all experts of a layer");
  for (size_t at = name.find('{'); at != std::string::npos; at = name.find('{', at + 1)) {
    const std::string_view mark = std::string_view(name).substr(at, 3);
    if (mark != "{L}" && mark != "{M}" && mark != "{X}" && mark != "{N}")
      table.refuse("name", cat("has '", mark, "'; wanted {L}, {M}, {X} or {N}"));
    if (name.find('*') < at) table.refuse("name", "has a wildcard before a number; wanted numbers before wildcards");
  }
  return rule;
}

}  // namespace

FamilyFile FamilyFile::read(const std::filesystem::path& path) { return from_json(read_toml(path), path.string()); }

FamilyFile FamilyFile::from_json(const Json& json, std::string_view source) {
  auto state = std::make_unique<State>();
  Family& family = state->family;
  family.surgery_only = true;
  family.layers = LayerPattern::kByWeights;

  const Table table(json, std::string(source));
  std::vector<std::string> known(kOtherKeys.begin(), kOtherKeys.end());
  for (const TextKey& key : kTextKeys) {
    known.emplace_back(key.key);
    if (table.find(key.key) != nullptr) family.*key.member = state->keep(table.text(key.key));
  }
  table.check_keys(known);
  (void)table.text("model_type");
  (void)table.text("top_k_key");
  const Json* keys = table.find("experts_keys");
  if (keys == nullptr || !keys->is_array() || keys->items().empty())
    table.refuse("experts_keys", "is missing; wanted a list of keys of config.json");
  for (const Json& key : keys->items()) {
    if (!key.is_string()) table.refuse("experts_keys", "has an item that is not text");
    state->experts_keys.push_back(state->keep(key.as_string()));
  }
  family.experts_keys = state->experts_keys;
  family.gate = GateFunction::kUnknown;
  if (table.find("gate") != nullptr) {
    const std::string& name = table.text("gate");
    const auto* gate = std::ranges::find(kGates, name, &GateName::name);
    if (gate == std::end(kGates))
      table.refuse("gate", cat("is '", name, "'; wanted softmax_topk, topk_softmax or sigmoid_topk"));
    family.gate = gate->gate;
  }
  const Json* renormalise = table.find("renormalise");
  if (renormalise == nullptr) {
    family.renormalise = Switch::unknown();
  } else if (renormalise->is_string()) {
    family.renormalise = Switch::read(state->keep(renormalise->as_string()), false);
  } else if (table.flag("renormalise", false)) {
    family.renormalise = Switch::yes();
  }
  family.from_file = true;
  family.says_groups = table.find("groups") != nullptr;
  family.has_groups = table.flag("groups", false);
  family.group_score_known = table.find("group_score") != nullptr;
  if (family.group_score_known) {
    if (!family.has_groups) table.refuse("group_score", "has no effect without groups = true (leave it out)");
    const std::string& name = table.text("group_score");
    if (name != "best" && name != "best_two")
      table.refuse("group_score", cat("is '", name, "'; wanted best or best_two"));
    family.group_score = name == "best" ? GroupScore::kBest : GroupScore::kBestTwo;
  }
  family.has_routed_scaling = table.find("routed_scaling_key") != nullptr;
  family.has_mtp = table.flag("mtp", false);
  if (table.flag("decoder_trunk", true)) family.trunk = detail::kDecoderTrunk;

  const Json* tensors = table.find("tensors");
  if (tensors == nullptr || !tensors->is_array()) table.refuse("tensors", "is missing; wanted [[tensors]] tables");
  for (const Json& item : tensors->items()) {
    const Table row(item, cat(source, ": tensors[", state->rules.size(), "]"));
    row.check_keys({kTensorKeys.begin(), kTensorKeys.end()});
    state->rules.push_back(rule_from(row, row.text("name")));
    state->rules.back().name = state->keep(row.text("name"));
  }
  family.tensors = state->rules;
  for (const Role role : {Role::kRouter, Role::kExpertDown}) {
    if (!family.has_role(role)) table.refuse("tensors", cat("has no tensor with the role ", role_name(role)));
  }
  return FamilyFile(std::move(state));
}

FamilyFile::FamilyFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
FamilyFile::FamilyFile(FamilyFile&&) noexcept = default;
FamilyFile& FamilyFile::operator=(FamilyFile&&) noexcept = default;
FamilyFile::~FamilyFile() = default;

const Family& FamilyFile::family() const { return state_->family; }

}  // namespace coppice::families
