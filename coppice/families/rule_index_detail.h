#pragma once

// From the name of a tensor to the rule of a family's table.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "coppice/families/family.h"

namespace coppice::families::detail {

/// Where a name belongs.
struct Placement {
  const TensorRule* rule = nullptr;
  int64_t layer = -1, expert = -1;
  size_t expert_at = 0;       ///< where the expert's number stands in the name
  bool is_companion = false;  ///< the rule is that of the matrix it goes with
  std::string suffix = {};    ///< of a companion: what sets its name apart from the matrix's
};

/// The suffixes of tensors that go with another of the same stem: "weight" -> "weight_scale_inv".
inline constexpr std::string_view kCompanionSuffixes[] = {"_scale_inv", "_scale", "_blocks", "_scales"};

/// The rules of a family by the names they stand for.
class RuleIndex {
 public:
  explicit RuleIndex(const Family& family);
  RuleIndex(const RuleIndex&) = delete;  // the map looks into the entries
  RuleIndex& operator=(const RuleIndex&) = delete;

  /// The rule that has `name`: one without wildcards before one with them, earlier rows first. A name that no rule has
  /// is a companion if it is another's with one of kCompanionSuffixes behind it, or has `input_scale` in the place of
  /// `weight`. Where weights are `quantised`, whatever lies in the module of a matrix goes with it, under any name:
  /// `qweight`, `weight_packed`, `weight.absmax`. Layers of {M} count from `num_layers`.
  std::optional<Placement> find(std::string_view name, int64_t num_layers, bool quantised = false) const;

 private:
  struct Entry {
    const TensorRule* rule;
    std::string pattern;  // numbers as '#'
    std::string marks;    // what each '#' is, in order: 'L', 'M', 'X', 'N'
  };
  const Entry* entry_of(const std::string& skeleton) const;
  const Entry* entry_of_module(const std::string& skeleton, std::string& suffix) const;

  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, size_t> exact_;  // pattern -> entry
  std::vector<size_t> wild_;
};

/// True if `text` is one of the texts that `pattern` stands for: `*` any text without a dot, `**` any text.
bool matches(std::string_view pattern, std::string_view text);

}  // namespace coppice::families::detail
