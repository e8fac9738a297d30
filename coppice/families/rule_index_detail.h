#pragma once

// Finds the rule of a family's table for the name of a tensor.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "coppice/families/family.h"

namespace coppice::families::detail {

/// The result of looking up a name.
struct Placement {
  const TensorRule* rule = nullptr;
  int64_t layer = -1, expert = -1;
  size_t expert_at = 0;       ///< position of the expert's number in the name
  bool is_companion = false;  ///< the rule is that of the matrix to which it belongs
  std::string suffix = {};    ///< for a companion: the suffix of its name after the matrix's
};

/// The suffixes of companion tensors, which share their stem with a matrix: "weight" -> "weight_scale_inv".
inline constexpr std::string_view kCompanionSuffixes[] = {"_scale_inv", "_scale", "_blocks",
                                                          "_scales",    "_amax",  "_outer_scale_denominator"};

/// The rules of a family, searchable by name.
class RuleIndex {
 public:
  explicit RuleIndex(const Family& family);
  RuleIndex(const RuleIndex&) = delete;  // the map has pointers into the entries
  RuleIndex& operator=(const RuleIndex&) = delete;

  /// The rule that matches `name`: rules without wildcards first, of these the ones that name a number in place of {N},
  /// then earlier rows first. A name without a rule is a
  /// companion if it is a matrix's name followed by one of kCompanionSuffixes, or has `input_scale` in place of
  /// `weight`. If weights are `quantised`, every tensor in the module of a matrix is its companion: `qweight`,
  /// `weight_packed`, `weight.absmax`. So is a tensor whose name continues that of a stacked matrix
  /// (`gate_up_proj_weight_scale`), and a scale in the module around attention or dense matrices (`self_attn.k_scale`).
  /// Layers of {M} count from `num_layers`.
  std::optional<Placement> find(std::string_view name, int64_t num_layers, bool quantised = false) const;

  struct Number {
    int64_t value;
    size_t at;  ///< in the name
  };
  /// A name with its numbers taken out: "model.layers.#.mlp.gate.weight". Numbers are parts between dots, or end the word
  /// for an expert.
  struct Skeleton {
    std::string text;
    std::vector<Number> numbers;
  };

 private:
  struct Entry {
    const TensorRule* rule;
    std::string pattern;          // numbers as '#'
    std::string marks;            // the kind of each '#', in order: 'L', 'M', 'X', 'N', '=' for one that the rule names
    std::vector<int64_t> wanted;  // that number; -1 for any

    bool fits(const std::vector<Number>& numbers) const;
  };
  static Entry entry_for(const TensorRule& rule);
  /// The rule for `text`, a beginning of the skeleton's text that may have another ending.
  const Entry* entry_of(const std::string& text, const Skeleton& of) const;
  const Entry* entry_of_stack(const Skeleton& of, std::string& suffix) const;
  const Entry* entry_of_block(const Skeleton& of, std::string& suffix) const;
  const Entry* entry_of_module(const Skeleton& of, std::string& suffix) const;

  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, std::vector<size_t>> exact_;  // pattern -> entries
  std::vector<size_t> wild_;
};

/// Whether `text` matches `pattern`: `*` is any text without a dot, `**` any text. Takes at most the product of their
/// lengths.
bool matches(std::string_view pattern, std::string_view text);

}  // namespace coppice::families::detail
