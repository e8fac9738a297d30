#pragma once

// Where an output will lie, whether it may be written there, and who holds the place.

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "coppice/base/file.h"

namespace coppice::io {

/// Where a new directory will lie: its parent, opened once, and its name in it. The path means what it means to the system: `a/../b` is
/// a sibling of what the link `a` leads to. A slash at its end changes nothing.
class OutputPlace {
 public:
  /// Throws   Error{kUsage}: `output` has no name of its own ('', '/', or it ends in '.' or '..'). Error{kIo}: no parent.
  OutputPlace(const std::filesystem::path& output);  // NOLINT(google-explicit-constructor): a path is a place

  /// As it was given; for messages.
  const std::filesystem::path& given() const { return given_; }
  /// The name in the parent.
  const std::string& name() const { return name_; }
  const Descriptor& parent() const { return parent_; }
  /// The parent's path when it was opened, without links.
  const std::filesystem::path& parent_path() const { return parent_path_; }

  /// Whether something has the name, be it a link to nowhere.
  bool is_taken() const;
  /// Throws   Error{kUsage} if something has the name.
  void check_free() const;
  /// Throws   Error{kUsage} if the place is `input` or lies inside it, wherever links and mounts lead; Error{kIo}.
  void check_apart_from(const std::filesystem::path& input) const;

 private:
  std::filesystem::path given_, parent_path_;
  std::string name_;
  Descriptor parent_;
};

/// For a command before its work, where the parent may not be there yet.
/// Throws   Error{kUsage} if `output` has no name, exists, or lies inside `input` or is it.
void check_output_directory(const std::filesystem::path& output, const std::filesystem::path& input);

/// A kind of file that a command writes under a name of the user's choice.
struct OutputKind {
  std::string_view name;  ///< as it stands in a message: "scores of experts"
  /// Whether a regular file is one; may throw Error for one that is not.
  bool (*is)(const std::filesystem::path& file);
};

/// `output` can be written without loss: there is nothing of that name, or an empty file, or a file of the same kind, and
/// it is none of the `inputs` and lies inside none of them that has a config.json (a model).
///
/// Throws   Error{kUsage} naming the file, what it is and what to do.
void check_output_file(const std::filesystem::path& output, const OutputKind& kind,
                       std::span<const std::filesystem::path> inputs);

/// A directory that this object holds: nobody else gets a lock on it until the object or its process ends. Nothing is
/// written there. File systems without locks let everybody pass.
class DirectoryLock {
 public:
  /// Nothing if somebody else holds it. Throws Error{kIo}.
  static std::optional<DirectoryLock> take(const std::filesystem::path& directory);

 private:
  explicit DirectoryLock(Descriptor directory) : directory_(std::move(directory)) {}

  Descriptor directory_;
};

}  // namespace coppice::io
