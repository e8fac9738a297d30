#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/io/safetensors.h"

namespace coppice::io::detail {

/// What the reference implementation takes at most.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

/// Direct writes and reflinks want whole blocks of this size at multiples of it.
inline constexpr uint64_t kBlockBytes = 4096;

struct Header {
  std::vector<TensorInfo> tensors;  ///< by offset
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;
};

/// The header of a whole safetensors file, fully checked against its size.
///
/// Throws   Error{kFormat} naming `source` and the tensors; see SafetensorsFile::open.
Header parse_header(std::span<const std::byte> file, std::string_view source);

/// Length, JSON and spaces: all that comes before the data, which starts at a multiple of `kBlockBytes`.
std::string header_bytes(const std::vector<TensorInfo>& tensors, const std::map<std::string, std::string>& metadata);

/// Bytes of a tensor; nothing if a size is negative, the count overflows or the elements fill no whole bytes.
std::optional<uint64_t> byte_count(Dtype dtype, std::span<const int64_t> shape);

}  // namespace coppice::io::detail
