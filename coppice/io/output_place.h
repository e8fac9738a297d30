#pragma once

// The place of a new directory. Its parent is looked up once and then used by descriptor, not by path.

#include <filesystem>
#include <string>

#include "coppice/base/file.h"

namespace coppice::io {

/// The open parent of an output, and the output's name in it. The path is resolved as by the system: `a/../b` is a
/// sibling of what the link `a` leads to. A slash at its end changes nothing.
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
/// Throws   Error{kUsage} if `output` has no name, exists, or lies inside `input` or is it.
void check_output_directory(const std::filesystem::path& output, const std::filesystem::path& input);

}  // namespace coppice::io
