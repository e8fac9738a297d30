#pragma once

// What config.json says of the number of experts, read without knowing the family.

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coppice/base/json.h"

namespace coppice::infer {

/// One part of config.json counts the experts: the whole file, or the language model of a multimodal one.
struct ExpertCount {
  std::string text_key;                 ///< "text_config"; empty: the whole file
  const Json* part = nullptr;           ///< in the configuration that was read; null in a finished inference
  std::string model_type;               ///< of the part
  int64_t experts = 0;                  ///< E
  std::vector<std::string> keys;        ///< keys of the part that say so: "num_experts", "ffn_config.moe_num_experts"
  std::vector<std::string> top_k_keys;  ///< keys that count the experts of a token
  int64_t top_k = 0;                    ///< what these say; 0 if there is none
  std::string num_groups_key, top_groups_key;  ///< router groups; empty without
  /// Numbers of experts that other parts count: their tensors are left alone.
  std::set<int64_t> others;
  bool is_repeated = false;        ///< the whole file and the part for the language model say so
  bool is_quantised = false;       ///< the part or the whole file describes quantised weights
  std::set<int64_t> vocabularies;  ///< sizes of vocabularies
};

/// Reads the count by rule 1: all keys of the part that count experts agree; no list or count by layer, no other key
/// with the same number that may count experts, no other part with the same number.
///
/// Throws   Error{kUnsupported} naming key and value.
ExpertCount count_experts(const Json& config);

/// Every whole number of `json`, with its path.
std::vector<std::pair<std::string, int64_t>> whole_numbers(const Json& json);

/// Numbers of `json` that are dimensions of tensors by their keys (sizes, widths, heads, ranks), and the widths of heads
/// that follow from them.
std::set<int64_t> dimensions_in(const Json& json);

/// Whether a key counts experts, by its name.
bool counts_experts(std::string_view key);

}  // namespace coppice::infer
