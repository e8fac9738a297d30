#include "coppice/families/match.h"

#include <algorithm>
#include <functional>
#include <iterator>

#include "coppice/base/check.h"
#include "coppice/base/text.h"
#include "coppice/families/placements_detail.h"
#include "coppice/families/quantization.h"

namespace coppice::families {

namespace {

constexpr std::string_view kDerivedSuffix = ".rotary_emb.inv_freq";

std::string fill_in(std::string_view name, int64_t layer, int64_t expert) {
  std::string out(name);
  const auto put = [&out](std::string_view mark, int64_t value) {
    if (const size_t at = out.find(mark); at != std::string::npos) out.replace(at, mark.size(), std::to_string(value));
  };
  put("{L}", layer);
  put("{X}", expert);
  return out;
}

TensorSlot make_slot(const ModelConfig& config, const TensorRule& rule, int64_t layer, int64_t expert) {
  TensorSlot slot{fill_in(rule.name, layer, expert), &rule, layer, expert, config.shape(rule), 0};
  if (expert >= 0) slot.expert_at = fill_in(rule.name.substr(0, rule.name.find("{X}")), layer, expert).size();
  return slot;
}

// A stored tensor that the configuration ties to another one.
constexpr TensorRule kTiedCopyRule{"", Role::kTiedCopy, {}, When::kOptional};

using Visitor = std::function<void(TensorSlot&&)>;

// The rules of one layer; adjacent rules of experts form a block that repeats for each expert.
void visit_layer(const ModelConfig& config, std::span<const TensorRule> rules, int64_t layer, const Visitor& visit) {
  for (size_t i = 0; i < rules.size();) {
    size_t end = i + 1;
    while (rules[i].per_expert() && end < rules.size() && rules[end].per_expert()) ++end;
    const int64_t num_experts =
        rules[i].per_expert() && config.moe_layer[static_cast<size_t>(layer)] ? config.num_experts : 0;
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      for (size_t k = i; k < end; ++k) visit(make_slot(config, rules[k], layer, expert));
    }
    if (!rules[i].per_expert() && config.present(rules[i].when, layer)) visit(make_slot(config, rules[i], layer, -1));
    i = end;
  }
}

void visit_expected(const ModelConfig& config, const Visitor& visit) {
  const auto rules = config.family->tensors;
  for (size_t i = 0; i < rules.size();) {
    if (!rules[i].per_layer()) {
      if (config.present(rules[i].when, -1)) visit(make_slot(config, rules[i], -1, -1));
      ++i;
      continue;
    }
    size_t end = i;
    while (end < rules.size() && rules[end].per_layer()) ++end;
    for (int64_t layer = 0; layer < config.num_layers; ++layer)
      visit_layer(config, rules.subspan(i, end - i), layer, visit);
    i = end;
  }
}

bool is_empty(const TensorSlot& slot) { return std::find(slot.shape.begin(), slot.shape.end(), 0) != slot.shape.end(); }

}  // namespace

std::vector<TensorSlot> expected_tensors(const ModelConfig& config) {
  std::vector<TensorSlot> slots;
  visit_expected(config, [&](TensorSlot&& slot) { slots.push_back(std::move(slot)); });
  return slots;
}

std::string tensor_name(const ModelConfig& config, Role role, int64_t layer, int64_t expert) {
  for (const TensorRule& rule : config.family->tensors) {
    if (rule.role != role || rule.per_layer() != (layer >= 0) || rule.per_expert() != (expert >= 0)) continue;
    if (config.present(rule.when, layer)) return fill_in(rule.name, layer, expert);
  }
  return {};
}

std::string name_for_expert(const TensorSlot& slot, int64_t expert) {
  std::string name = slot.name;
  return name.replace(slot.expert_at, std::to_string(slot.expert).size(), std::to_string(expert));
}

namespace {

using detail::Faults;
using detail::Placed;

// Checks the tensors that the configuration requires and their shapes; other tensors may be MTP layers or companions of
// a matrix.
std::vector<TensorSlot> match_strictly(const ModelConfig& config, const io::Checkpoint& checkpoint, Faults& faults) {
  std::vector<TensorSlot> slots;
  const auto& entries = checkpoint.entries();
  std::vector<bool> placed(entries.size());
  visit_expected(config, [&](TensorSlot&& slot) {
    const auto at = checkpoint.find(slot.name);
    if (!at) {
      if (!is_empty(slot)) faults.missing.add(slot.name);
      return;
    }
    const auto& found = entries[*at].info->shape;
    if (found != slot.shape)
      faults.misshapen.add(cat(slot.name, " is ", shape_text(found), ", wanted ", shape_text(slot.shape)));
    placed[*at] = true;
    slot.name = entries[*at].info->name;  // the same text, shared
    slots.push_back(std::move(slot));
  });
  const detail::RuleIndex index(*config.family);
  std::vector<Placed> extra, past_last;
  for (size_t i = 0; i < entries.size(); ++i) {
    const io::TensorName& name = entries[i].info->name;
    if (placed[i] || name.ends_with(kDerivedSuffix)) continue;
    auto found = place(config, index, name, entries[i].info->shape);
    if (found && config.tied && found->matched->when == When::kIfUntied) {
      const std::vector<int64_t> wanted = config.shape(*found->matched);
      if (found->slot.shape != wanted)
        faults.misshapen.add(cat(name, " is ", shape_text(found->slot.shape), ", wanted ", shape_text(wanted)));
      slots.push_back({name, &kTiedCopyRule, -1, -1, found->slot.shape, 0});
      continue;
    }
    const bool is_past_last = found && found->slot.layer >= config.num_layers;
    const bool goes_with_another = found && found->is_companion && found->slot.expert < config.num_experts;
    if (is_past_last) past_last.push_back(*found);
    if (is_past_last || goes_with_another) {
      extra.push_back(std::move(*found));
    } else {
      faults.unknown.add(name);
    }
  }
  check_experts(config, past_last, faults);
  sort_by_table(config, extra);
  for (Placed& p : extra) slots.push_back(std::move(p.slot));
  return slots;
}

std::vector<TensorSlot> match_by_weights(const ModelConfig& config, std::span<const io::TensorInfo* const> tensors,
                                         Faults& faults) {
  const detail::RuleIndex index(*config.family);
  std::vector<Placed> placed;
  placed.reserve(tensors.size());
  for (const io::TensorInfo* info : tensors) {
    const io::TensorName& name = info->name;
    if (name.ends_with(kDerivedSuffix)) continue;
    if (auto found = place(config, index, name, info->shape)) {
      found->dtype = info->dtype;
      placed.push_back(std::move(*found));
    } else {
      faults.unknown.add(name);
    }
  }
  settle_orientation(config, placed);
  check_experts(config, placed, faults);
  check_expert_shapes(config, placed, faults);
  if (config.family->from_file && !config.family->is_inferred) check_carried(config, placed, faults);
  if (std::ranges::none_of(placed, [](const Placed& p) { return is_expert(p.slot.role()); })) {
    for (const TensorRule& rule : config.family->tensors) {
      if (is_expert(rule.role) && rule.when != When::kOptional) faults.missing.add(std::string(rule.name));
    }
  }
  sort_by_table(config, placed);
  std::vector<TensorSlot> slots;
  slots.reserve(placed.size());
  for (Placed& p : placed) slots.push_back(std::move(p.slot));
  return slots;
}

std::string unknown_text(const ModelConfig& config, const io::Checkpoint& checkpoint, const Faults& faults) {
  const Family* nearer = detail::nearest_family(checkpoint);
  const bool is_other = nearer != nullptr && nearer != config.family;
  const bool looks_quantised = !config.is_quantised() && std::ranges::any_of(checkpoint.names(), [](const auto& name) {
    return detail::holds_packed_values(name) || name.ends_with(".weight_scale_2");
  });
  return cat(faults.unknown.count, " unknown: ", faults.unknown.text(),
             looks_quantised ? " (these look like quantised weights, but config.json has no quantization_config)" : "",
             is_other ? cat(" (the family with the most similar tensors: ", nearer->model_type, ")") : std::string());
}

}  // namespace

namespace {

void refuse_faults(const ModelConfig& config, const io::Checkpoint& checkpoint, const Faults& faults) {
  std::vector<std::string> texts;
  if (faults.missing.count > 0) texts.push_back(cat(faults.missing.count, " missing: ", faults.missing.text()));
  if (faults.unknown.count > 0) texts.push_back(unknown_text(config, checkpoint, faults));
  if (faults.misshapen.count > 0)
    texts.push_back(
        cat(faults.misshapen.count, " with a shape that differs from config.json: ", faults.misshapen.text()));
  if (faults.unfit.count > 0)
    texts.push_back(
        cat(faults.unfit.count, " of experts with sizes that do not fit each other: ", faults.unfit.text()));
  if (faults.carried.count > 0) {
    texts.push_back(cat(faults.carried.count,
                        " that the family file copies unchanged although they belong to experts: ",
                        faults.carried.text(), " (give each a rule with its own role)"));
  }
  if (texts.empty()) return;
  throw Error(
      faults.missing.count + faults.unknown.count + faults.carried.count > 0 ? ErrorCode::kFormat : ErrorCode::kShape,
      cat(checkpoint.directory(), ": the tensors do not fit a ", config.family->model_type,
          " model with this config.json", config.is_quantised() ? cat(", quantised with ", config.quantisation) : "",
          ": ", join(texts, "; "), " (check that weights and config.json are of the same model)"));
}

}  // namespace

std::vector<TensorSlot> match(const ModelConfig& config, const io::Checkpoint& checkpoint) {
  Faults faults;
  std::vector<const io::TensorInfo*> tensors;
  if (config.placed_by_weights()) {
    for (const auto& entry : checkpoint.entries()) tensors.push_back(entry.info);
  }
  auto slots = config.placed_by_weights() ? match_by_weights(config, tensors, faults)
                                          : match_strictly(config, checkpoint, faults);
  refuse_faults(config, checkpoint, faults);
  return slots;
}

std::vector<TensorSlot> detail::match_tensors(const ModelConfig& config, const io::Checkpoint& checkpoint,
                                              std::span<const io::TensorInfo> tensors) {
  Faults faults;
  std::vector<const io::TensorInfo*> all;
  for (const io::TensorInfo& info : tensors) all.push_back(&info);
  auto slots = match_by_weights(config, all, faults);
  refuse_faults(config, checkpoint, faults);
  return slots;
}

}  // namespace coppice::families
