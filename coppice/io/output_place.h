#pragma once

// Where a new directory will lie: looked up once, then meant by its parent's descriptor and not by its path.

#include <filesystem>
#include <string>

#include "coppice/base/file.h"

namespace coppice::io {

/// The parent of an output, opened, and the output's name in it. The path means what it means to the system: `a/../b` is
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

}  // namespace coppice::io
