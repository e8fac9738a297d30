#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/count_keys_detail.h"
#include "coppice/families/limits.h"
#include "coppice/families/placements_detail.h"
#include "coppice/families/quantization.h"

namespace coppice::families::detail {

namespace {

constexpr size_t kMostListed = 20;

// Companions of a matrix are copied with it, in one piece or stacked like the matrix.
constexpr TensorRule kOwnCompanion{"", Role::kExpertCompanion};
constexpr TensorRule kStackedCompanion{"", Role::kExpertCompanion, {}, When::kOptional, kStacked};
constexpr TensorRule kOtherCompanion{"", Role::kOther, {}, When::kOptional};
constexpr TensorRule kTower{"", Role::kOther, {}, When::kOptional};

// Stacked matrices in the transposed layout (transformers saves those of qwen3_vl_moe so).
constexpr TensorRule kTurned[] = {{"", Role::kExpertGate, {}, When::kAlways, kStacked},
                                  {"", Role::kExpertUp, {}, When::kAlways, kStacked},
                                  {"", Role::kExpertGateUp, {}, When::kAlways, kStacked},
                                  {"", Role::kExpertDown, {}, When::kAlways, kStacked}};
constexpr TensorRule kTurnedInOut[] = {{"", Role::kExpertGate, {}, When::kAlways, kStackedInOut},
                                       {"", Role::kExpertUp, {}, When::kAlways, kStackedInOut},
                                       {"", Role::kExpertGateUp, {}, When::kAlways, kStackedInOut},
                                       {"", Role::kExpertDown, {}, When::kAlways, kStackedInOut}};

/// The orientation of a stacked matrix, from its shape.
enum class Lies : uint8_t { kEither, kAsInTable, kOtherWay };

Lies lies(const TensorRule& rule, const io::TensorShape& shape, int64_t model_dim) {
  const bool may_turn = model_dim > 0 && shape.size() == 3 && rule.layout.stacked && !rule.layout.interleaved;
  const bool is_matrix = std::ranges::find(kTurned, rule.role, &TensorRule::role) != std::end(kTurned);
  if (!may_turn || !is_matrix || shape[1] == shape[2]) return Lies::kEither;
  const size_t expected = (rule.role == Role::kExpertDown) == rule.layout.transposed ? 2 : 1;
  if (shape[expected] == model_dim) return Lies::kAsInTable;
  return shape[3 - expected] == model_dim ? Lies::kOtherWay : Lies::kEither;
}

const TensorRule* turned(const TensorRule& rule) {
  const auto& rules = rule.layout.transposed ? kTurned : kTurnedInOut;
  const auto* found = std::ranges::find(rules, rule.role, &TensorRule::role);
  return found == std::end(rules) ? &rule : found;
}

struct Prefix {
  std::string_view found, canonical;
};
// How multimodal models name their language model's tensors.
constexpr Prefix kTextPrefixes[] = {{"model.language_model.", "model."},
                                    {"language_model.model.blocks.", "model.layers."},  // kimi_k25 in transformers
                                    {"language_model.model.", "model."},
                                    {"language_model.lm_head.", "lm_head."}};

bool is_row(const TensorSlot& slot) { return has_rows(slot.role()); }
bool is_required(const TensorRule& rule) {
  return (is_expert(rule.role) || has_rows(rule.role)) && rule.when != When::kOptional;
}

/// The contents of one MoE layer.
struct LayerContents {
  std::set<Role> roles;
  int64_t list = 0, origin = 0;  // of layers, and what its number is counted from
  bool is_new = true;
  using Key = std::pair<const TensorRule*, std::string>;  // a rule with {X}, and the suffix of a companion
  std::map<Key, std::set<int64_t>> experts;
  std::map<Key, const Placed*> first;  // expert's
};

// Gate and up may be in one tensor or in two.
bool has_role(const LayerContents& layer, Role role) {
  const auto has = [&layer](Role r) { return layer.roles.contains(r); };
  if (has(role)) return true;
  if (role == Role::kExpertGate || role == Role::kExpertUp) return has(Role::kExpertGateUp);
  return role == Role::kExpertGateUp && has(Role::kExpertGate) && has(Role::kExpertUp);
}

/// Layers in names with {L}, with {M}, and with each first_layer are lists of their own.
int64_t list_of(const TensorRule& rule) { return rule.counts_from_last() ? -2 : rule.first_layer; }

/// What the number of a layer in names of this rule is counted from.
int64_t origin_of(const ModelConfig& config, const TensorRule& rule) {
  return rule.counts_from_last() ? config.num_layers : std::max<int64_t>(rule.first_layer, 0);
}

std::string placeholder_name(const TensorRule& rule, int64_t layer) {
  std::string name(rule.name);
  for (const std::string_view mark : {"{L}", "{M}"}) {
    if (const size_t at = name.find(mark); at != std::string::npos)
      name.replace(at, mark.size(), std::to_string(layer));
  }
  return name;
}

bool shape_fits(const ModelConfig& config, const TensorSlot& slot) {
  const auto& shape = slot.shape;
  if (is_row(slot)) {
    const int64_t rows = config.rows_of(slot.role());
    const bool one_row = shape.size() == 2 && shape[0] == 1 && shape[1] == rows;  // ernie4_5_moe's [1, experts]
    return !shape.empty() && (shape[0] == rows || one_row);
  }
  if (!slot.rule->layout.stacked) return true;
  if (shape.empty()) return false;
  const bool flat = shape.size() == 2 && !is_bias(slot.role()) && slot.role() != Role::kExpertCompanion;
  return flat ? shape[0] % config.num_experts == 0 : shape[0] == config.num_experts;
}

// Experts must be matrices and biases vectors, and gate and up in one tensor must have the same number of rows.
bool dimensions_fit(const TensorSlot& slot) {
  const Role role = slot.role();
  if (!is_expert(role) || is_copied_whole(role)) return true;
  const bool stacked = slot.rule->layout.stacked;
  const size_t dims = slot.shape.size(), own = is_bias(role) ? 1 : 2;
  if (dims != own + (stacked ? 1 : 0) && !(stacked && own == 2 && dims == 2)) return false;
  if (role != Role::kExpertGateUp && role != Role::kExpertGateUpBias) return true;
  return slot.shape[dims - (slot.rule->layout.transposed || own == 1 ? 1 : 2)] % 2 == 0;
}

}  // namespace

void Misses::add(const std::string& text) {
  if (++count <= kMostListed) first.push_back(text);
}

std::string Misses::text() const {
  return cat(join(first), count > first.size() ? cat(", ... (", count - first.size(), " more)") : std::string());
}

CanonicalName canonical_name(const ModelConfig& config, std::string_view name) {
  if (config.text_key.empty()) return {std::string(name), true};
  std::string canonical = without_text_prefix(name);
  const bool in_text = canonical != name;
  return {std::move(canonical), in_text};
}

std::optional<Placed> place(const ModelConfig& config, const RuleIndex& index, const io::TensorName& name,
                            const io::TensorShape& shape) {
  const auto [canonical, in_text] = canonical_name(config, name.view());
  const auto found = index.find(canonical, config.num_layers, config.is_quantised());
  if (!found) {
    const size_t experts = name.find(".experts.");
    const bool of_tower = experts != std::string::npos && speaks_of_a_tower(name.view().substr(0, experts));
    if (in_text || (experts != std::string::npos && !of_tower)) return std::nullopt;
    return Placed{{name, &kTower, -1, -1, shape, 0}, &kTower, false};
  }
  Placed out{
      {name, found->rule, found->layer, found->expert, shape, 0}, found->rule, found->is_companion, found->suffix};
  if (found->expert >= 0) out.slot.expert_at = found->expert_at + name.size() - canonical.size();
  if (found->is_companion) {
    if (has_rows(found->rule->role)) return std::nullopt;
    const bool one_for_all = shape.empty() || (shape.size() == 1 && shape[0] == 1);  // a scale of all experts
    const bool is_stacked = found->rule->layout.stacked;
    out.slot.rule = !is_expert(found->rule->role) || (is_stacked && one_for_all && config.num_experts > 1)
                        ? &kOtherCompanion
                    : is_stacked ? &kStackedCompanion
                                 : &kOwnCompanion;
  }
  if (out.slot.layer >= kMaxLayers) return std::nullopt;
  const bool past_last = config.num_layers > 0 && out.slot.layer >= config.num_layers;
  const bool may_be_past = config.family->has_mtp || found->rule->counts_from_last() || found->rule->first_layer >= 0;
  if (past_last && !may_be_past) return std::nullopt;
  return out;
}

void settle_orientation(const ModelConfig& config, std::vector<Placed>& placed) {
  const Placed *as_in_table = nullptr, *other = nullptr;
  for (const Placed& p : placed) {
    if (p.is_companion) continue;
    const Lies how = lies(*p.matched, p.slot.shape, config.model_dim);
    if (how == Lies::kAsInTable) as_in_table = &p;
    if (how == Lies::kOtherWay) other = &p;
  }
  if (other == nullptr) return;
  if (as_in_table != nullptr) {
    throw Error(ErrorCode::kFormat,
                cat("'", as_in_table->slot.name, "' is ", shape_text(as_in_table->slot.shape), " and '",
                    other->slot.name, "' ", shape_text(other->slot.shape), " with a model dimension of ",
                    config.model_dim, "; wanted both [in, out] or both [out, in]"));
  }
  for (Placed& p : placed) {
    const bool may_turn = !p.is_companion && p.matched->layout.stacked && !p.matched->layout.interleaved;
    if (may_turn && p.slot.shape.size() == 3) p.slot.rule = turned(*p.matched);
  }
}

void sort_by_table(const ModelConfig& config, std::vector<Placed>& placed) {
  std::map<const TensorRule*, std::pair<size_t, size_t>>
      order;  // rule -> its block (rules with {X} share one) and its position
  size_t block = 0, first_layered = 0, at = 0;
  bool was_expert = false, seen_layer = false;
  for (const auto rules : {config.family->tensors, config.family->trunk}) {
    for (const TensorRule& rule : rules) {
      if (!(rule.per_expert() && was_expert)) ++block;
      was_expert = rule.per_expert();
      if (rule.per_layer() && !seen_layer) {
        seen_layer = true;
        first_layered = block;
      }
      order.emplace(&rule, std::pair(block, at++));
    }
  }
  const auto key = [&](const Placed& p) {
    const auto found = order.find(p.matched);
    const auto [rank, index] = found == order.end() ? std::pair(block + 1, at) : found->second;
    const int section = p.slot.layer >= 0 ? 1 : rank < first_layered ? 0 : 2;
    return std::tuple(section, p.slot.layer, rank, p.slot.expert, index, p.slot.name.view());
  };
  std::ranges::sort(placed, [&](const Placed& a, const Placed& b) { return key(a) < key(b); });
}

void check_experts(const ModelConfig& config, const std::vector<Placed>& placed, Faults& faults) {
  std::map<int64_t, LayerContents> layers;
  for (const Placed& p : placed) {
    const TensorSlot& slot = p.slot;
    if (!is_expert(slot.role()) && !is_row(slot)) continue;
    LayerContents& layer = layers[slot.layer];
    const int64_t list = list_of(*p.matched);
    if (!layer.is_new && list != layer.list && std::max(list, layer.list) >= 0)
      faults.unknown.add(cat(slot.name, " (another list has a layer ", slot.layer, ", by its first_layer)"));
    layer.is_new = false;
    layer.list = list;
    layer.origin = origin_of(config, *p.matched);
    const bool stands_for = !p.is_companion || (p.dtype ? stands_for_matrix(slot.name, *p.dtype, slot.shape)
                                                        : holds_packed_values(slot.name));
    if (stands_for) layer.roles.insert(p.matched->role);
    if (!dimensions_fit(slot) || !shape_fits(config, slot)) {
      faults.misshapen.add(cat(slot.name, " is ", shape_text(slot.shape), ", wanted one for ",
                               is_row(slot) ? config.rows_of(slot.role()) : config.num_experts, " experts"));
    }
    if (slot.expert < 0) continue;
    const LayerContents::Key key(p.matched, p.suffix);
    layer.experts[key].insert(slot.expert);
    const Placed& first = *layer.first.emplace(key, &p).first->second;
    if (first.slot.shape != slot.shape) {
      faults.misshapen.add(cat(slot.name, " is ", shape_text(slot.shape), ", wanted ", shape_text(first.slot.shape),
                               " as ", first.slot.name, " is"));
    }
    if (config.is_quantised() && first.dtype && p.dtype && *first.dtype != *p.dtype) {
      faults.misshapen.add(cat(slot.name, " is ", io::dtype_name(*p.dtype), ", wanted ", io::dtype_name(*first.dtype),
                               " as ", first.slot.name, " is (all experts must be quantised in the same way)"));
    }
  }
  for (const auto& [index, layer] : layers) {
    for (const TensorRule& rule : config.family->tensors) {
      if (!is_required(rule) || list_of(rule) != layer.list || has_role(layer, rule.role)) continue;
      faults.missing.add(placeholder_name(rule, index - layer.origin));
    }
    for (const auto& [key, experts] : layer.experts) {
      const TensorRule* rule = key.first;
      const auto name_of = [&, of_layer = index - layer.origin, suffix = key.second](int64_t expert) {
        std::string name = placeholder_name(*rule, of_layer);
        name.replace(name.find("{X}"), 3, std::to_string(expert));
        return suffix.empty() ? name : cat(name, " (", suffix, ")");
      };
      const bool with_trailing =
          *experts.rbegin() >= config.num_experts;  // longcat_flash saves the other choices like experts
      const int64_t wanted = with_trailing ? config.router_rows() : config.num_experts;
      for (int64_t expert = 0; expert < wanted; ++expert) {
        if (!experts.contains(expert)) faults.missing.add(name_of(expert));
      }
      if (*experts.rbegin() >= wanted)
        faults.unknown.add(cat(name_of(*experts.rbegin()), " (config.json counts ", config.num_experts, " experts)"));
    }
  }
}

}  // namespace coppice::families::detail

namespace coppice::families {

std::string without_text_prefix(std::string_view name) {
  for (const detail::Prefix& prefix : detail::kTextPrefixes) {
    if (name.starts_with(prefix.found)) return cat(prefix.canonical, name.substr(prefix.found.size()));
  }
  return std::string(name);
}

}  // namespace coppice::families
