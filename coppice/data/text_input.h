#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace coppice::data {

/// How documents are stored in text files.
struct TextFormat {
  std::string text_key = "text";  ///< key of the text in each object of a .jsonl file
  /// Plain text: a document ends at an empty line; otherwise each file is one document.
  bool split_at_blank_lines = false;
};

/// The text files behind `paths`, sorted within each directory: files as given, directories searched for *.txt and
/// *.jsonl, packed or not, and packed *.json and *.ndjson.
///
/// Throws   Error{kNotFound}: a path that does not exist, a directory without such files. Error{kFormat}: a named pipe,
///          a device.
std::vector<std::filesystem::path> list_text_files(std::span<const std::filesystem::path> paths);

/// Calls `take` with every document that is not empty, in order, each well-formed UTF-8. A file that ends in .jsonl,
/// .ndjson or .json has one JSON object per line; any other is plain text. Both may be packed with gzip (.jsonl.gz).
///
/// Memory   a plain file completely, a .jsonl file line by line.
/// Throws   Error{kNotFound, kIo, kInterrupted}; Error{kFormat} naming file and byte or line; Error{kUnsupported} for
///          text that is compressed in another way.
void read_documents(const std::filesystem::path& file, const TextFormat& format,
                    const std::function<void(std::string&&)>& take);

/// A random part of the documents of all files, about `bytes` long, in slices of at most 64 KiB, in order.
std::vector<std::string> sample_text(std::span<const std::filesystem::path> files, const TextFormat& format,
                                     uint64_t bytes, uint64_t seed);

}  // namespace coppice::data
