#pragma once

#include <string_view>

namespace coppice::io::detail {

/// Whether a text of JSON or YAML counts experts (`"num_experts": 8`, `moe_num_experts: 8`) or names one by its number
/// (`experts.0`, `experts[0]`). A list of words that merely has the word is neither.
bool mentions_experts(std::string_view text);

}  // namespace coppice::io::detail
