#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/base/rng.h"

namespace coppice::plan {

/// What a selection rule sees of one layer (or one router group).
struct SelectionInput {
  std::span<const double> scores;  ///< [E], finite and >= 0, not all zero
  int64_t num_new = 0;             ///< n copies to place
  std::optional<uint64_t>
      max_duplicates;  ///< new copies per expert; the caller has already dealt out whole rounds past it
  double temperature = 1.0;
  RngKey key;  ///< for rules that draw; purpose is set by the rule
};

/// Rule: number of new copies of each expert. Deterministic; ties go to the lower index. methods.md section 2.
struct SelectionRule {
  std::string_view name;
  std::vector<uint32_t> (*choose)(const SelectionInput&);
  bool needs_scores;
  std::optional<uint64_t> default_cap;
  std::string_view summary, source;
};
std::span<const SelectionRule> selection_rules();
/// Throws Error{kUsage} with the nearest name.
const SelectionRule& selection_rule(std::string_view name);

/// Checks scores, deals out whole rounds where n >= cap * E, then applies the rule.
///
/// Shapes   scores [E] (empty: all equal); returns [E] counts that sum to num_new.
std::vector<uint32_t> select_parents(const SelectionRule& rule, SelectionInput input, int64_t experts);

}  // namespace coppice::plan
