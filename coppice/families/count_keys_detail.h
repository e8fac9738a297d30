#pragma once

// The many names under which configurations count experts, and the places of a configuration that repeat a count.

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "coppice/families/config_reader_detail.h"
#include "coppice/families/model_config.h"

namespace coppice::families::detail {

/// What an expansion may change.
enum class Count : uint8_t { kExperts, kTopK, kExpertWidth };

/// What the name of a key says of `count`.
enum class KeyMeaning : uint8_t {
  kSame,   ///< a known name of it
  kOther,  ///< something else
  kMaybe,  ///< it speaks of such a count, and the name is not known
};
KeyMeaning meaning_of(std::string_view key, Count count);

/// A name of the parts that multimodal models have beside the language model: "vision_config", "audio_tower.layers.0".
bool speaks_of_a_tower(std::string_view name);

/// The keys that are there and mean the same: the family's own first, then known names beside it. Width has no names
/// beside its own.
std::vector<std::string_view> keys_present(const ConfigReader& in, const Family& family, Count count);
[[noreturn]] void refuse_difference(const ConfigReader& in, std::string_view key, std::string_view other);

/// `edit` of every number of `json` that is this count: the family's own keys (lists element by element), those that
/// keys_present knows, and keys of a known name with the same value at any depth, but in the configurations of towers
/// beside the language model. A value is the same whatever it is written as: 8, 8.0, "8", and by layer [0, 8] or
/// {"0": 8}.
///
/// Throws   Error{kUnsupported} naming a key whose value is the same and whose meaning is not known, and for the number
///          of experts a list or map below a key that speaks of experts with an entry for each of them.
void edit_count(Json& json, const ModelConfig& config, Count count, const std::function<int64_t(int64_t)>& edit);

}  // namespace coppice::families::detail
