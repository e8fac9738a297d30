#pragma once

#include <optional>
#include <string_view>

namespace coppice::io {

/// Where the number (or the class of digits) stands by which `text` first names an expert: a module's name ("experts.3.up",
/// "expert_3"), or a pattern of such names ("experts\\.[0-3]\\.", "*experts.0*"). Nothing where a pattern stands for any
/// number ("experts.*", "experts\\.\\d+"), nor of shared experts.
std::optional<size_t> numbered_expert(std::string_view text);

/// Whether a text of JSON or YAML counts experts (`"num_experts": 8`, `experts_per_layer: [8, 8]`), lists something of
/// each (`expert_ids: [0, 1]`) or names one by its number. A list of words that merely has the word is none of these.
bool mentions_experts(std::string_view text);

}  // namespace coppice::io
