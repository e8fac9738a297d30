#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/io/block_file.h"
#include "coppice/io/safetensors.h"

namespace coppice::io::detail {

/// The limit of the reference implementation.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct Header {
  std::vector<TensorInfo> tensors;  ///< by offset
  std::vector<uint32_t> by_name;    ///< indices of `tensors`, sorted by name
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;
};

/// The header of a whole safetensors file, fully checked against its size.
///
/// Memory   the result; the header is read one tensor at a time.
/// Throws   Error{kFormat} naming `source` and the tensors; see SafetensorsFile::open.
Header parse_header(std::span<const std::byte> file, std::string_view source);

/// Passes on the JSON of a header, in pieces of `piece_bytes`; the last is shorter.
void each_json_piece(const std::vector<TensorInfo>& tensors, const std::map<std::string, std::string>& metadata,
                     size_t piece_bytes, const std::function<void(std::string_view)>& take);
/// The bytes of a header whose JSON has `json_bytes`, including length and padding; the data starts at a multiple of
/// `kBlockBytes`.
uint64_t header_bytes(uint64_t json_bytes);

/// Bytes of a tensor; none if a size is negative, the count overflows or the elements do not fill whole bytes.
std::optional<uint64_t> byte_count(Dtype dtype, std::span<const int64_t> shape);

}  // namespace coppice::io::detail
