#include <algorithm>

#include "coppice/base/check.h"
#include "coppice/base/text.h"
#include "coppice/families/rule_index_detail.h"
#include "coppice/io/expert_mentions.h"

namespace coppice::families::detail {

namespace {

constexpr size_t kMostDigits = 9;

bool is_number(std::string_view part) {
  if (part.empty() || part.size() > kMostDigits || (part.size() > 1 && part.front() == '0')) return false;
  return part.find_first_not_of("0123456789") == std::string_view::npos;
}

/// Where the number begins if the part between two dots is one, or ends with the number of an expert; npos without.
size_t number_at(std::string_view part) {
  if (is_number(part)) return 0;
  const auto at = io::number_in_word(part);
  return at && is_number(part.substr(*at)) ? *at : std::string_view::npos;
}

/// Calls `visit(part, position)` for each part between dots.
template <class Visit>
void for_each_part(std::string_view name, Visit visit) {
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    visit(name.substr(begin, end - begin), begin);
    begin = end + 1;
  }
}

RuleIndex::Skeleton skeleton_of(std::string_view name) {
  RuleIndex::Skeleton out;
  for_each_part(name, [&out](std::string_view part, size_t begin) {
    if (begin > 0) out.text += '.';
    const size_t at = number_at(part);
    out.text += part.substr(0, at);
    if (at == std::string_view::npos) return;
    out.numbers.push_back({std::stoll(std::string(part.substr(at))), begin + at});
    out.text += '#';
  });
  return out;
}

}  // namespace

bool matches(std::string_view pattern, std::string_view text) {
  const size_t plain = std::min(pattern.find('*'), pattern.size());
  if (!text.starts_with(pattern.substr(0, plain))) return false;
  text.remove_prefix(plain);
  // reached[i]: what was read of the pattern matches the first i characters.
  std::vector<bool> reached(text.size() + 1);
  reached[0] = true;
  for (size_t at = plain; at < pattern.size(); ++at) {
    if (pattern[at] == '*') {
      const bool over_dots = pattern.substr(at).starts_with("**");
      if (over_dots) ++at;
      for (size_t i = 0; i < text.size(); ++i) {
        if (reached[i] && (over_dots || text[i] != '.')) reached[i + 1] = true;
      }
    } else {
      for (size_t i = text.size(); i > 0; --i) reached[i] = reached[i - 1] && text[i - 1] == pattern[at];
      reached[0] = false;
    }
  }
  return reached[text.size()];
}

RuleIndex::Entry RuleIndex::entry_for(const TensorRule& rule) {
  Entry entry{&rule, {}, {}, {}};
  bool is_wild = false;
  for_each_part(rule.name, [&](std::string_view part, size_t begin) {
    if (begin > 0) entry.pattern += '.';
    is_wild = is_wild || part.find('*') != std::string_view::npos;
    if (const size_t at = number_at(part); at != std::string_view::npos && !is_wild) {
      entry.pattern += part.substr(0, at);
      entry.pattern += '#';
      entry.marks += '=';
      entry.wanted.push_back(std::stoll(std::string(part.substr(at))));
      return;
    }
    for (size_t i = 0; i < part.size(); ++i) {
      if (part[i] != '{') {
        entry.pattern += part[i];
        continue;
      }
      entry.marks += part.at(i + 1);
      entry.wanted.push_back(-1);
      entry.pattern += '#';
      i += 2;
    }
  });
  return entry;
}

bool RuleIndex::Entry::fits(const std::vector<Number>& numbers) const {
  for (size_t i = 0; i < std::min(wanted.size(), numbers.size()); ++i) {
    if (wanted[i] >= 0 && wanted[i] != numbers[i].value) return false;
  }
  return true;
}

RuleIndex::RuleIndex(const Family& family) {
  for (const TensorRule& rule : family.tensors) entries_.push_back(entry_for(rule));
  for (const TensorRule& rule : family.trunk) entries_.push_back(entry_for(rule));
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].pattern.find('*') == std::string::npos) {
      exact_[entries_[i].pattern].push_back(i);
    } else {
      wild_.push_back(i);
    }
  }
  const auto names_number = [this](size_t i) { return entries_[i].marks.find('=') != std::string::npos; };
  for (auto& [pattern, same] : exact_) std::ranges::stable_partition(same, names_number);
}

const RuleIndex::Entry* RuleIndex::entry_of(const std::string& text, const Skeleton& of) const {
  if (const auto found = exact_.find(text); found != exact_.end()) {
    for (const size_t i : found->second) {
      if (entries_[i].fits(of.numbers)) return &entries_[i];
    }
  }
  for (const size_t i : wild_) {
    if (entries_[i].fits(of.numbers) && matches(entries_[i].pattern, text)) return &entries_[i];
  }
  return nullptr;
}

// The matrix in whose module the tensor lies: names are cut at their dots from the end.
const RuleIndex::Entry* RuleIndex::entry_of_module(const Skeleton& of, std::string& suffix) const {
  constexpr int kMostParts = 3;
  size_t dot = of.text.size();
  for (int part = 0; part < kMostParts; ++part) {
    dot = dot == 0 ? std::string::npos : of.text.rfind('.', dot - 1);
    if (dot == std::string::npos) return nullptr;
    const std::string stem = of.text.substr(0, dot);
    suffix = of.text.substr(dot);
    if (const Entry* entry = entry_of(stem + ".weight", of)) return entry;
    if (const Entry* entry = entry_of(stem, of)) return entry;
  }
  return nullptr;
}

// The matrix of all experts whose name the tensor's continues: "gate_up_proj" of "gate_up_proj_weight_scale_2".
const RuleIndex::Entry* RuleIndex::entry_of_stack(const Skeleton& of, std::string& suffix) const {
  const std::string& text = of.text;
  const size_t dot = text.rfind('.');
  for (size_t cut = text.rfind('_'); cut != std::string::npos && cut > 0 && (dot == std::string::npos || cut > dot);
       cut = text.rfind('_', cut - 1)) {
    const Entry* entry = entry_of(text.substr(0, cut), of);
    if (entry == nullptr || !entry->rule->layout.stacked || !is_expert(entry->rule->role)) continue;
    suffix = text.substr(cut);
    return entry;
  }
  return nullptr;
}

// A scale of a module's activations, such as the cache of keys and values in an attention: it goes with any matrix of
// the module, if none of them belongs to experts or routers.
const RuleIndex::Entry* RuleIndex::entry_of_block(const Skeleton& of, std::string& suffix) const {
  const size_t dot = of.text.rfind('.');
  if (dot == std::string::npos || of.text.find("scale", dot) == std::string::npos) return nullptr;
  const std::string module = of.text.substr(0, dot + 1);
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    if (!entry.pattern.starts_with(module) || !entry.fits(of.numbers)) continue;
    if (is_expert(entry.rule->role) || has_rows(entry.rule->role)) return nullptr;
    found = &entry;
  }
  if (found != nullptr) suffix = of.text.substr(dot);
  return found;
}

std::optional<Placement> RuleIndex::find(std::string_view name, int64_t num_layers, bool quantised) const {
  if (name.find('#') != std::string_view::npos) return std::nullopt;  // it would be taken for a number
  const Skeleton skeleton = skeleton_of(name);
  Placement placement;
  const Entry* entry = entry_of(skeleton.text, skeleton);
  if (entry == nullptr) {
    placement.is_companion = true;
    for (const std::string_view suffix : kCompanionSuffixes) {
      if (entry != nullptr || !skeleton.text.ends_with(suffix)) continue;
      placement.suffix = suffix;
      entry = entry_of(skeleton.text.substr(0, skeleton.text.size() - suffix.size()), skeleton);
    }
    constexpr std::string_view kInputScale = ".input_scale";
    if (entry == nullptr && skeleton.text.ends_with(kInputScale)) {
      placement.suffix = kInputScale;
      entry = entry_of(skeleton.text.substr(0, skeleton.text.size() - kInputScale.size()) + ".weight", skeleton);
    }
    if (entry == nullptr && quantised) entry = entry_of_stack(skeleton, placement.suffix);
    if (entry == nullptr && quantised) entry = entry_of_module(skeleton, placement.suffix);
    if (entry == nullptr && quantised) entry = entry_of_block(skeleton, placement.suffix);
  }
  if (entry == nullptr) return std::nullopt;
  placement.rule = entry->rule;
  const int64_t first = std::max<int64_t>(entry->rule->first_layer, 0);
  placement.layer = entry->rule->first_layer;
  for (size_t i = 0; i < entry->marks.size(); ++i) {
    if (i >= skeleton.numbers.size()) break;  // of a module that has several numbered parts
    const Number& number = skeleton.numbers[i];
    switch (entry->marks[i]) {
      case 'L': placement.layer = first + number.value; break;
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
