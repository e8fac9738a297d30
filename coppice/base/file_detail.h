#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

namespace coppice::detail {

/// Passes the bytes of a file to `take`, piece by piece.
///
/// Memory   one piece of 256 KiB.
/// Throws   Error{kNotFound, kIo}; Error{kFormat} if it is not a regular file.
void read_pieces(const std::filesystem::path& path, const std::function<void(std::span<const std::byte>)>& take);

/// The whole of a text file. Throws Error{kNotFound, kIo}; Error{kFormat} if it is longer than `max_bytes` or not a
/// regular file.
std::string read_text(const std::filesystem::path& path, uint64_t max_bytes);

}  // namespace coppice::detail
