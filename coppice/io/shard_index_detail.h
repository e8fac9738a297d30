#pragma once

#include <map>
#include <string>
#include <string_view>

#include "coppice/base/json.h"

namespace coppice::io::detail {

using WeightMap = std::map<std::string, std::string, std::less<>>;  ///< tensor -> shard file

/// The map of a `model.safetensors.index.json`, whose files all are relative paths that do not lead out by "..". Links
/// are not looked at: resolve_inside does.
///
/// Throws   Error{kFormat} naming `source`: no weight_map, files that are no text or lie elsewhere.
WeightMap parse_shard_index(const Json& index, std::string_view source);

}  // namespace coppice::io::detail
