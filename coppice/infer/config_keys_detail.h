#pragma once

// What the keys of config.json say beside the number of experts.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"

namespace coppice::infer::detail {

inline std::string_view last_of(std::string_view path) { return path.substr(path.rfind('.') + 1); }

/// A part is an object with a model_type of its own that describes a model.
bool is_part(const Json& object);

/// Whether a key that mentions experts counts something else by a word in its name: per_tok, size, layer ...
bool counts_something_else(std::string_view name);

/// The keys of `part` that count the experts of a token (top-K): those with a usual name, and those that a name without
/// one of its own ("top_k") has by the object that it lies in. `top_k` is set to what they say.
///
/// Throws   Error{kUnsupported} if they disagree.
std::vector<std::string> top_k_keys(const Json& part, int64_t experts, int64_t& top_k);

/// Whether `key` counts router groups, or those that a token may use.
bool is_groups(std::string_view key, bool chosen_ones);

/// Rule 1: no other key with the number of experts may count them, and no list may have an entry for each.
///
/// Throws   Error{kUnsupported} naming key and value.
void check_other_keys(const Json& part, const std::map<std::string, int64_t>& counts, int64_t experts);

}  // namespace coppice::infer::detail
