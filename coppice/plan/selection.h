#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/base/rng.h"

namespace coppice::plan {

/// The input of a selection rule for one layer (or one router group).
struct SelectionInput {
  std::span<const double> scores;  ///< [E], finite and >= 0, not all zero
  int64_t num_new = 0;             ///< number of new copies to assign
  std::optional<uint64_t>
      max_duplicates;  ///< limit of new copies per expert; the caller has already assigned whole rounds beyond it
  double temperature = 1.0;
  RngKey key;  ///< for rules that use random numbers; the rule sets the purpose
};

/// A rule that gives the number of new copies of each expert. Deterministic; ties go to the lower index. See
/// docs/methods.md, "Which experts".
struct SelectionRule {
  std::string_view name;
  std::vector<uint32_t> (*choose)(const SelectionInput&);
  bool needs_scores;
  std::optional<uint64_t> default_cap;
  std::string_view summary, source;
};
std::span<const SelectionRule> selection_rules();
/// Throws   Error{kUsage} with the nearest name if there is no such rule.
const SelectionRule& selection_rule(std::string_view name);

/// Checks the scores, assigns whole rounds of copies to all experts while n >= cap * E, then applies the rule.
///
/// Shapes   scores [E] (empty: all equal); returns [E] counts that sum to num_new.
std::vector<uint32_t> select_parents(const SelectionRule& rule, SelectionInput input, int64_t experts);

}  // namespace coppice::plan
