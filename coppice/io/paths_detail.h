#pragma once

#include <filesystem>
#include <string_view>

namespace coppice::io::detail {

/// Throws   Error{kFormat} naming `subject` if the path is empty, absolute, has ".." or a NUL.
void check_relative(std::string_view subject, const std::filesystem::path& relative);

/// The real file behind `relative`, a path from outside (an index, a directory listing), inside `directory`.
///
/// A symbolic link may lead out of the directory only in the Hugging Face cache, where the files of
/// `snapshots/REVISION` are links to `../../blobs/HASH`. The result need not exist.
/// Throws   Error{kFormat} naming both if the path is absolute, has "..", or leads elsewhere.
std::filesystem::path resolve_inside(const std::filesystem::path& directory, const std::filesystem::path& relative);

}  // namespace coppice::io::detail
