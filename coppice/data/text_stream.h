#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace coppice::data {

/// The text of a file from start to end, decompressed if it is gzip (recognised by its first bytes, not its name;
/// several members are one text).
///
/// Memory   two pieces of 256 KiB.
class TextStream {
 public:
  /// Throws   Error{kNotFound, kIo}; Error{kFormat} if it is not a regular file; Error{kUnsupported} naming the format
  ///          if it is compressed in another way (zstd, bzip2, xz, lz4, zip, parquet, arrow).
  explicit TextStream(std::filesystem::path path);
  ~TextStream();
  TextStream(const TextStream&) = delete;
  TextStream& operator=(const TextStream&) = delete;

  /// Fills the start of `out`; returns how much, 0 at the end.
  ///
  /// Throws   Error{kIo, kInterrupted}; Error{kFormat}: gzip data that is damaged or cut short.
  size_t read(std::span<char> out);
  /// The next line with its newline, which the last one may lack. False at the end.
  bool read_line(std::string& line);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The size of the text in bytes: the file's size or, for gzip, the decompressed size (which requires reading it).
///
/// Throws   as TextStream.
uint64_t text_bytes(const std::filesystem::path& path);

/// The name's ending without that of gzip: ".jsonl" of "a.jsonl.gz".
std::string text_extension(const std::filesystem::path& path);

}  // namespace coppice::data
