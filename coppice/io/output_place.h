#pragma once

// Places of outputs: whether an output may be written there, and a lock on a directory.

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "coppice/base/file.h"

namespace coppice::io {

/// The place of a new directory: its parent, which is looked up once and then used by descriptor, and its name there. The
/// path is resolved as by the system: `a/../b` is a sibling of what the link `a` leads to. A slash at its end changes nothing.
class OutputPlace {
 public:
  /// Throws   Error{kUsage}: `output` has no name of its own ('', '/', or it ends in '.' or '..'). Error{kIo}: no
  ///          parent.
  OutputPlace(const std::filesystem::path& output);  // NOLINT(google-explicit-constructor): a path is a place

  /// The path as given; for messages.
  const std::filesystem::path& given() const { return given_; }
  /// The name in the parent.
  const std::string& name() const { return name_; }
  const Descriptor& parent() const { return parent_; }
  /// The parent's path when it was opened, without links.
  const std::filesystem::path& parent_path() const { return parent_path_; }

  /// Whether the name exists, even as a dangling link.
  bool is_taken() const;
  /// Throws   Error{kUsage} if the name exists.
  void check_free() const;
  /// Throws   Error{kUsage} if the place is `input` or inside it, through any links and mounts; Error{kIo}.
  void check_apart_from(const std::filesystem::path& input) const;

 private:
  std::filesystem::path given_, parent_path_;
  std::string name_;
  Descriptor parent_;
};

/// For a command before its work, when the parent may not exist yet.
/// `shared`: other processes write it too, and may have finished it by now.
/// Throws   Error{kUsage} if `output` has no name, exists (unless it is shared), or lies inside `input` or is it.
void check_output_directory(const std::filesystem::path& output, const std::filesystem::path& input,
                            bool shared = false);

/// A kind of file that a command writes under a name of the user's choice.
struct OutputKind {
  std::string_view name;  ///< for messages: "scores of experts"
  /// Whether a regular file is of this kind; may throw Error if it is not.
  bool (*is)(const std::filesystem::path& file);
};

/// Checks that writing `output` loses nothing: it does not exist, is empty, or is a file of the same kind; and it is
/// not an input and not inside an input that is a model (has a config.json).
///
/// Throws   Error{kUsage} naming the file, its kind and what to do.
void check_output_file(const std::filesystem::path& output, const OutputKind& kind,
                       std::span<const std::filesystem::path> inputs);

/// A lock on a directory: nobody else gets it until this object or its process ends. Nothing is written there. On file
/// systems without locks everybody gets it.
class DirectoryLock {
 public:
  /// None if somebody else has the lock. Throws Error{kIo}.
  static std::optional<DirectoryLock> take(const std::filesystem::path& directory);

 private:
  explicit DirectoryLock(Descriptor directory) : directory_(std::move(directory)) {}

  Descriptor directory_;
};

}  // namespace coppice::io
