#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace coppice::io {

/// A kind of file that a command writes under a name of the user's choice.
struct OutputKind {
  std::string_view name;  ///< for messages: "scores of experts"
  bool (*is)(
      const std::filesystem::path& regular_file);  ///< whether the file is of this kind; may throw Error if it is not
};

/// Checks that writing `output` loses nothing: it does not exist, is empty, or is a file of the same kind; and it is
/// not an input and not inside an input that is a model (has a config.json).
///
/// Throws   Error{kUsage} naming the file, its kind and what to do.
void check_output_file(const std::filesystem::path& output, const OutputKind& kind,
                       std::span<const std::filesystem::path> inputs);

/// The first `max_bytes` of a file, or all.
std::string read_start(const std::filesystem::path& path, size_t max_bytes);

}  // namespace coppice::io
