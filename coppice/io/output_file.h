#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace coppice::io {

/// A kind of file that a command writes under a name of the user's choice.
struct OutputKind {
  std::string_view name;  ///< as it stands in a message: "scores of experts"
  bool (*is)(
      const std::filesystem::path& regular_file);  ///< whether the file is one; may throw Error for one that is not
};

/// `output` can be written without loss: there is nothing of that name, or an empty file, or a file of the same kind, and
/// it is none of the `inputs` and lies inside none of them that has a config.json (a model).
///
/// Throws   Error{kUsage} naming the file, what it is and what to do.
void check_output_file(const std::filesystem::path& output, const OutputKind& kind,
                       std::span<const std::filesystem::path> inputs);

/// The first `max_bytes` of a file, or all.
std::string read_start(const std::filesystem::path& path, size_t max_bytes);

}  // namespace coppice::io
