#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace coppice::data {

/// The text of a file from its start to its end, unpacked where it is gzip (told by its first bytes, whatever its name;
/// several members one after the other are one text).
///
/// Memory   two pieces of 256 KiB.
class TextStream {
 public:
  /// Throws   Error{kNotFound, kIo}; Error{kFormat} if it is not a regular file; Error{kUnsupported} naming the format of
  ///          one that is compressed or packed in another way (zstd, bzip2, xz, lz4, zip, parquet, arrow).
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

/// Bytes of the text: the file's size, or, of a gzip file, what it unpacks to (which takes reading it).
///
/// Throws   as TextStream.
uint64_t text_bytes(const std::filesystem::path& path);

/// The name's ending without that of gzip: ".jsonl" of "a.jsonl.gz".
std::string text_extension(const std::filesystem::path& path);

}  // namespace coppice::data
