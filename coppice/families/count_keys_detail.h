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

/// What the name of a key means with regard to `count`.
enum class KeyMeaning : uint8_t {
  kSame,   ///< a known name of this count
  kOther,  ///< another meaning
  kMaybe,  ///< it may be such a count, but the name is not known
};
KeyMeaning meaning_of(std::string_view key, Count count);

/// Whether the name belongs to a part of a multimodal model besides the language model: "vision_config",
/// "audio_tower.layers.0".
bool speaks_of_a_tower(std::string_view name);

/// The keys present that mean this count: the family's own first, then other known names. Width has only the family's
/// own key.
std::vector<std::string_view> keys_present(const ConfigReader& in, const Family& family, Count count);
[[noreturn]] void refuse_difference(const ConfigReader& in, std::string_view key, std::string_view other);

/// Applies `edit` to every number in `json` that is this count: in the family's own keys (lists element by element), in
/// those that keys_present knows, and in keys with a known name and the same value at any depth, except in the
/// configurations of other parts of a multimodal model. A value counts as the same in any spelling: 8, 8.0, "8", and by
/// layer [0, 8] or {"0": 8}.
///
/// Throws   Error{kUnsupported} naming a key that has the same value but an unknown meaning and, for the number of
///          experts, a list or map with one entry per expert below a key that mentions experts.
void edit_count(Json& json, const ModelConfig& config, Count count, const std::function<int64_t(int64_t)>& edit);

}  // namespace coppice::families::detail
