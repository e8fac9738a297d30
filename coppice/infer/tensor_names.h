#pragma once

// What the name of a tensor says, read without knowing the family.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::infer {

/// A name cut at its dots, with the number of an expert if it has one: "experts.3.up", "expert_3.up"
/// or "expert3.up".
struct SplitName {
  std::vector<std::string_view> words;
  std::optional<size_t> number_at;     ///< the word with the expert's number
  std::optional<size_t> container_at;  ///< the word "experts"; the same word for "expert_3"

  /// The expert's number. Only with `number_at`.
  int64_t expert() const;
  /// Words [begin, end), with dots.
  std::string joined(size_t begin, size_t end) const;
};
SplitName split_name(std::string_view name);

/// The words up to the layer's number, the last number among the first `end` words: "model.layers.3"; empty if there is
/// none.
std::string layer_prefix(const SplitName& name, size_t end);

/// The position of the word that stacked experts lie below ("experts", "moe_experts"); none if no word says so.
std::optional<size_t> stack_container(const SplitName& name);

bool is_digits(std::string_view word);
/// Whether the tensor `name` lies in `module`: "model.layers.3" of "model.layers.3.mlp.gate.weight".
bool is_below(std::string_view name, std::string_view module);
bool is_shared(std::string_view name);
/// Whether a word of `rest` is a usual name of a router: gate, router, wg, classifier ...
bool speaks_of_a_router(std::string_view rest);
/// Whether the name says that the tensor belongs to attention, a norm, embeddings or another part beside experts.
bool speaks_of_something_else(std::string_view name);
/// Whether the name is usual for a value of each expert: e_score_correction_bias, expert_bias, per_expert_scale ...
bool speaks_of_a_row(std::string_view name);
/// Whether any word contains "expert".
bool speaks_of_experts(std::string_view rest);
/// The name with '#' for every number after the first word.
std::string without_numbers(std::string_view name);

}  // namespace coppice::infer
