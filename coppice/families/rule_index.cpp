#include <algorithm>

#include "coppice/base/check.h"
#include "coppice/base/text.h"
#include "coppice/families/rule_index_detail.h"

namespace coppice::families::detail {

namespace {

constexpr std::string_view kNumberedExpert = "expert_";  // switch_transformers, nllb-moe
constexpr size_t kMostDigits = 9;

struct Number {
  int64_t value;
  size_t at;  // in the name
};

/// A name with its numbers taken out: "model.layers.#.mlp.gate.weight". Numbers are parts between dots.
struct Skeleton {
  std::string text;
  std::vector<Number> numbers;
};

bool is_number(std::string_view part) {
  if (part.empty() || part.size() > kMostDigits || (part.size() > 1 && part.front() == '0')) return false;
  return part.find_first_not_of("0123456789") == std::string_view::npos;
}

Skeleton skeleton_of(std::string_view name) {
  Skeleton out;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    std::string_view part = name.substr(begin, end - begin);
    size_t at = begin;
    if (part.starts_with(kNumberedExpert) && is_number(part.substr(kNumberedExpert.size()))) {
      out.text += kNumberedExpert;
      part.remove_prefix(kNumberedExpert.size());
      at += kNumberedExpert.size();
    }
    if (is_number(part)) {
      out.numbers.push_back({std::stoll(std::string(part)), at});
      out.text += '#';
    } else {
      out.text += part;
    }
    if (end < name.size()) out.text += '.';
    begin = end + 1;
  }
  return out;
}

}  // namespace

bool matches(std::string_view pattern, std::string_view text) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == text;
  if (pattern.substr(0, star) != text.substr(0, star)) return false;
  const bool over_dots = pattern.substr(star).starts_with("**");
  const std::string_view rest = pattern.substr(star + (over_dots ? 2 : 1));
  for (size_t end = star; end <= text.size(); ++end) {
    if (matches(rest, text.substr(end))) return true;
    if (end < text.size() && text[end] == '.' && !over_dots) return false;
  }
  return false;
}

RuleIndex::RuleIndex(const Family& family) {
  const auto add = [this](const TensorRule& rule) {
    Entry entry{&rule, {}, {}};
    for (size_t i = 0; i < rule.name.size(); ++i) {
      if (rule.name[i] != '{') {
        entry.pattern += rule.name[i];
        continue;
      }
      entry.marks += rule.name.at(i + 1);
      entry.pattern += '#';
      i += 2;
    }
    entries_.push_back(std::move(entry));
  };
  for (const TensorRule& rule : family.tensors) add(rule);
  for (const TensorRule& rule : family.trunk) add(rule);
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].pattern.find('*') == std::string::npos) {
      exact_.emplace(entries_[i].pattern, i);
    } else {
      wild_.push_back(i);
    }
  }
}

const RuleIndex::Entry* RuleIndex::entry_of(const std::string& skeleton) const {
  if (const auto found = exact_.find(skeleton); found != exact_.end()) return &entries_[found->second];
  for (const size_t i : wild_) {
    if (matches(entries_[i].pattern, skeleton)) return &entries_[i];
  }
  return nullptr;
}

// The matrix in whose module the tensor lies: names are cut at their dots from the end.
const RuleIndex::Entry* RuleIndex::entry_of_module(const std::string& skeleton, std::string& suffix) const {
  constexpr int kMostParts = 3;
  size_t dot = skeleton.size();
  for (int part = 0; part < kMostParts; ++part) {
    dot = dot == 0 ? std::string::npos : skeleton.rfind('.', dot - 1);
    if (dot == std::string::npos) return nullptr;
    const std::string stem = skeleton.substr(0, dot);
    suffix = skeleton.substr(dot);
    if (const Entry* entry = entry_of(stem + ".weight")) return entry;
    if (const Entry* entry = entry_of(stem)) return entry;
  }
  return nullptr;
}

// The matrix of all experts whose name the tensor's continues: "gate_up_proj" of "gate_up_proj_weight_scale_2".
const RuleIndex::Entry* RuleIndex::entry_of_stack(const std::string& skeleton, std::string& suffix) const {
  const size_t dot = skeleton.rfind('.');
  for (size_t cut = skeleton.rfind('_'); cut != std::string::npos && cut > 0 && (dot == std::string::npos || cut > dot);
       cut = skeleton.rfind('_', cut - 1)) {
    const Entry* entry = entry_of(skeleton.substr(0, cut));
    if (entry == nullptr || !entry->rule->layout.stacked || !is_expert(entry->rule->role)) continue;
    suffix = skeleton.substr(cut);
    return entry;
  }
  return nullptr;
}

// A scale of a module's activations, such as the cache of keys and values in an attention: it goes with any matrix of
// the module, if none of them belongs to experts or routers.
const RuleIndex::Entry* RuleIndex::entry_of_block(const std::string& skeleton, std::string& suffix) const {
  const size_t dot = skeleton.rfind('.');
  if (dot == std::string::npos || skeleton.find("scale", dot) == std::string::npos) return nullptr;
  const std::string module = skeleton.substr(0, dot + 1);
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    if (!entry.pattern.starts_with(module)) continue;
    if (is_expert(entry.rule->role) || has_rows(entry.rule->role)) return nullptr;
    found = &entry;
  }
  if (found != nullptr) suffix = skeleton.substr(dot);
  return found;
}

std::optional<Placement> RuleIndex::find(std::string_view name, int64_t num_layers, bool quantised) const {
  if (name.find('#') != std::string_view::npos) return std::nullopt;  // it would be taken for a number
  const Skeleton skeleton = skeleton_of(name);
  Placement placement;
  const Entry* entry = entry_of(skeleton.text);
  if (entry == nullptr) {
    placement.is_companion = true;
    for (const std::string_view suffix : kCompanionSuffixes) {
      if (entry != nullptr || !skeleton.text.ends_with(suffix)) continue;
      placement.suffix = suffix;
      entry = entry_of(skeleton.text.substr(0, skeleton.text.size() - suffix.size()));
    }
    constexpr std::string_view kInputScale = ".input_scale";
    if (entry == nullptr && skeleton.text.ends_with(kInputScale)) {
      placement.suffix = kInputScale;
      entry = entry_of(skeleton.text.substr(0, skeleton.text.size() - kInputScale.size()) + ".weight");
    }
    if (entry == nullptr && quantised) entry = entry_of_stack(skeleton.text, placement.suffix);
    if (entry == nullptr && quantised) entry = entry_of_module(skeleton.text, placement.suffix);
    if (entry == nullptr && quantised) entry = entry_of_block(skeleton.text, placement.suffix);
  }
  if (entry == nullptr) return std::nullopt;
  placement.rule = entry->rule;
  for (size_t i = 0; i < entry->marks.size(); ++i) {
    if (i >= skeleton.numbers.size()) break;  // of a module that has several numbered parts
    const Number& number = skeleton.numbers[i];
    switch (entry->marks[i]) {
      case 'L': placement.layer = number.value; break;
      case 'M': placement.layer = num_layers + number.value; break;
      case 'X':
        placement.expert = number.value;
        placement.expert_at = number.at;
        break;
      default: break;
    }
  }
  return placement;
}

}  // namespace coppice::families::detail
