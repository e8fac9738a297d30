#pragma once

#include <optional>
#include <string_view>

namespace coppice::io {

/// The position of the number (or class of digits) with which `text` first names an expert: in a module's name
/// ("experts.3.up", "expert_3") or in a pattern of such names ("experts\\.[0-3]\\.", "*experts.0*"). None if the
/// pattern matches any number ("experts.*", "experts\\.\\d+"), and for shared experts.
std::optional<size_t> numbered_expert(std::string_view text);

/// The position of an expert's number at the end of a word of a tensor's name: "expert_3", "experts_3", "expert3",
/// "moe_expert_3". None for shared experts.
std::optional<size_t> number_in_word(std::string_view word);

/// Whether a JSON or YAML text counts experts (`"num_experts": 8`, `experts_per_layer: [8, 8]`), lists a value for each
/// (`expert_ids: [0, 1]`) or names one by its number. A list of words that contains the word "expert" is none of these.
bool mentions_experts(std::string_view text);

}  // namespace coppice::io
