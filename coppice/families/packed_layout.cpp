#include "coppice/families/packed_layout.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/model_config.h"
#include "coppice/families/placements_detail.h"

namespace coppice::families {

namespace {

struct Packed {
  std::deque<std::string> names;  // storage of the views; a deque never moves its items
  std::vector<TensorRule> tensors, trunk;
  Family family;
};

std::string renamed(std::string_view name, std::span<const Rename> renames) {
  std::string out(name);
  for (const Rename& rename : renames) {
    if (const size_t at = out.find(rename.from); at != std::string::npos) {
      out.replace(at, rename.from.size(), rename.to);
      break;
    }
  }
  return out;
}

Shape packed_shape(Role role, const Shape& one) {
  if (one.size() == 0) return {};
  switch (role) {
    case Role::kExpertGateUp: return {Dim::kExperts, Dim::kExpertGateUpRows, Dim::kModel};
    case Role::kExpertUp: return {Dim::kExperts, Dim::kExpertWidth, Dim::kModel};
    case Role::kExpertDown: return {Dim::kExperts, Dim::kModel, Dim::kExpertWidth};
    case Role::kExpertGateUpBias: return {Dim::kExperts, Dim::kExpertGateUpRows};
    case Role::kExpertUpBias: return {Dim::kExperts, Dim::kExpertWidth};
    default: return {Dim::kExperts, Dim::kModel};
  }
}

/// The rule of the packed tensor that contains one expert's `rule`; none for up, which follows gate in the same tensor.
std::optional<TensorRule> packed_rule(const TensorRule& rule, bool has_gate, std::deque<std::string>& names) {
  Role role = rule.role;
  std::string_view own;
  switch (rule.role) {
    case Role::kExpertGate:
      role = Role::kExpertGateUp;
      own = "gate_up_proj";
      break;
    case Role::kExpertGateBias:
      role = Role::kExpertGateUpBias;
      own = "gate_up_proj_bias";
      break;
    case Role::kExpertUp:
      if (has_gate) return std::nullopt;
      own = "up_proj";
      break;
    case Role::kExpertUpBias:
      if (has_gate) return std::nullopt;
      own = "up_proj_bias";
      break;
    case Role::kExpertDown: own = "down_proj"; break;
    case Role::kExpertDownBias: own = "down_proj_bias"; break;
    default: return rule;
  }
  TensorRule out = rule;
  out.role = role;
  const std::string_view prefix = rule.name.substr(0, rule.name.find("{X}"));
  out.name = names.emplace_back(std::string(prefix) + std::string(own));
  out.shape = packed_shape(role, rule.shape);
  out.layout = kStacked;
  return out;
}

std::unique_ptr<Packed> make_packed(const Family& family) {
  auto packed = std::make_unique<Packed>();
  packed->family = family;
  const bool has_gate = family.has_role(Role::kExpertGate);
  const auto add = [&](const TensorRule& rule, std::vector<TensorRule>& rules) {
    TensorRule out = rule;
    out.name = packed->names.emplace_back(renamed(rule.name, family.memory_names));
    if (out.per_expert() && !out.counts_from_last()) {
      const auto of_all = packed_rule(out, has_gate, packed->names);
      if (!of_all) return;
      out = *of_all;
    }
    rules.push_back(out);
  };
  for (const TensorRule& rule : family.tensors) add(rule, packed->tensors);
  for (const TensorRule& rule : family.trunk) add(rule, packed->trunk);
  packed->family.tensors = packed->tensors;
  packed->family.trunk = packed->trunk;
  return packed;
}

bool has_second_layout(const Family& family) {
  if (!family.has_moe() || family.from_file) return false;
  const bool per_expert = std::ranges::any_of(family.tensors, [](const TensorRule& rule) { return rule.per_expert(); });
  return per_expert || !family.memory_names.empty();
}

bool is_expert_name(const detail::RuleIndex& index, std::string_view name) {
  const auto found = index.find(name, 0);
  return found && !found->is_companion && is_expert(found->rule->role);
}

}  // namespace

const Family* packed_layout(const Family& family) {
  if (!has_second_layout(family)) return nullptr;
  static std::mutex mutex;
  static std::map<const Family*, std::unique_ptr<Packed>> made;
  const std::lock_guard lock(mutex);
  for (const auto& [of, packed] : made) {
    if (&packed->family == &family) return &family;  // it is the packed layout already
  }
  auto& packed = made[&family];
  if (!packed) packed = make_packed(family);
  return &packed->family;
}

const Family& stored_layout(const ModelConfig& config, const io::Checkpoint& checkpoint) {
  const Family* packed = packed_layout(*config.family);
  if (packed == nullptr) return *config.family;
  const detail::RuleIndex first(*config.family), second(*packed);
  bool in_second = false;
  for (const std::string& name : checkpoint.names()) {
    const std::string canonical = detail::canonical_name(config, name).name;
    if (is_expert_name(first, canonical)) return *config.family;
    in_second = in_second || is_expert_name(second, canonical);
  }
  return in_second ? *packed : *config.family;
}

std::vector<TensorSlot> slots_in_memory(const ModelConfig& config, std::span<const io::TensorInfo> tensors) {
  if (!config.is_moe()) return {};
  const Family* packed = packed_layout(*config.family);
  const Family& family = packed == nullptr ? *config.family : *packed;
  ModelConfig in_memory = config;
  const auto has_experts = [&](const Family& candidate) {
    const detail::RuleIndex index(candidate);
    return std::ranges::any_of(tensors, [&](const io::TensorInfo& info) {
      return is_expert_name(index, detail::canonical_name(config, info.name.view()).name);
    });
  };
  if (!has_experts(*config.family)) in_memory.family = &family;
  const detail::RuleIndex index(*in_memory.family);
  std::vector<detail::Placed> placed;
  for (const io::TensorInfo& info : tensors) {
    auto found = detail::place(in_memory, index, info.name, info.shape);
    if (!found || (!is_expert(found->slot.role()) && !has_rows(found->slot.role()))) continue;
    found->dtype = info.dtype;
    placed.push_back(std::move(*found));
  }
  detail::settle_orientation(in_memory, placed);
  detail::Faults faults;
  detail::check_experts(in_memory, placed, faults);
  detail::check_expert_shapes(in_memory, placed, faults);
  std::vector<std::string> texts;
  const auto add = [&texts](const detail::Misses& misses, std::string_view problem) {
    if (misses.count > 0) texts.push_back(cat(misses.count, " ", problem, ": ", misses.text()));
  };
  if (placed.empty()) texts.emplace_back("it has no tensor that is named like those of experts or routers");
  add(faults.missing, "missing");
  add(faults.unknown, "unknown");
  add(faults.misshapen, "with a shape that differs from the configuration");
  add(faults.unfit, "of experts with sizes that do not fit each other");
  if (!texts.empty()) {
    throw Error(
        placed.empty() || faults.missing.count + faults.unknown.count > 0 ? ErrorCode::kFormat : ErrorCode::kShape,
        cat("the model's tensors do not fit a ", config.family->model_type, " model with this configuration: ",
            join(texts, "; "), " (check that model and configuration belong together)"));
  }
  detail::sort_by_table(in_memory, placed);
  std::vector<TensorSlot> slots;
  for (detail::Placed& p : placed) slots.push_back(std::move(p.slot));
  return slots;
}

std::string name_in_any_layout(const ModelConfig& config, std::string_view name) {
  constexpr std::string_view kModel = "model.";
  const detail::CanonicalName canonical = detail::canonical_name(config, name);
  if (canonical.in_text) return renamed(canonical.name, config.family->memory_names);
  // Models whose text part has no prefix in files.
  for (const std::string_view part : {"model.layers.", "model.embed_tokens.", "model.norm.", "model.hc_head."}) {
    if (canonical.name.starts_with(part)) return renamed(canonical.name, config.family->memory_names);
  }
  return canonical.name.starts_with(kModel) ? canonical.name.substr(kModel.size()) : canonical.name;
}

}  // namespace coppice::families
