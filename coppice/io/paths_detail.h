#pragma once

#include <filesystem>

namespace coppice::io::detail {

/// The real file behind `relative`, a path from outside (an index, a directory listing), inside `directory`.
///
/// A symbolic link may lead out of the directory only in the Hugging Face cache, where the files of
/// `snapshots/REVISION` are links to `../../blobs/HASH`. The result need not exist.
/// Throws   Error{kFormat} naming both if the path is absolute, has "..", or ends elsewhere.
std::filesystem::path resolve_inside(const std::filesystem::path& directory, const std::filesystem::path& relative);

}  // namespace coppice::io::detail
