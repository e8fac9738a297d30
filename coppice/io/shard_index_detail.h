#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coppice/io/tensor_info.h"

namespace coppice::io::detail {

/// Which shard has which tensor.
struct WeightMap {
  std::vector<std::string> files;                        ///< as the index spells them
  std::vector<std::pair<TensorName, uint32_t>> tensors;  ///< sorted by name; the number counts `files`

  bool contains(std::string_view tensor) const;
};

/// The map of a `model.safetensors.index.json`, whose files all are relative paths that do not lead out by "..". Links
/// are not looked at: resolve_inside does.
///
/// Memory   the result.
/// Throws   Error{kFormat} naming `source`: no JSON, no weight_map, a tensor twice, files that are not text or lie
///          elsewhere.
WeightMap parse_shard_index(std::string_view index, std::string_view source);

}  // namespace coppice::io::detail
