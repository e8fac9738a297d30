#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/paths_detail.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io::detail {
namespace fs = std::filesystem;
namespace {

bool lies_in(const fs::path& path, const fs::path& directory) {
  const auto [end, unused] = std::ranges::mismatch(directory, path);
  return end == directory.end() && path != directory;
}

// `models--ORG--NAME/snapshots/REVISION` -> `models--ORG--NAME/blobs`; nothing if this is no such directory.
fs::path blobs_of(const fs::path& directory) {
  const auto snapshots = directory.parent_path();
  return snapshots.filename() == "snapshots" ? snapshots.parent_path() / "blobs" : fs::path();
}

}  // namespace

fs::path resolve_inside(const fs::path& directory, const fs::path& relative) {
  const auto reject = [&](const auto&... found) {
    throw Error(ErrorCode::kFormat, cat(directory, ": ", quote(relative.string()), " ", found...,
                                        "; wanted a file inside the directory (put the file itself there)"));
  };
  if (relative.empty() || relative.is_absolute()) reject("is no relative path");
  if (std::ranges::find(relative, fs::path("..")) != relative.end()) reject("leads out by '..'");
  std::error_code failure;
  const auto root = fs::canonical(directory, failure);
  if (failure) throw_io(directory.string(), "resolve it", failure.value());
  const auto real = fs::weakly_canonical(root / relative, failure);
  if (failure) throw_io((root / relative).string(), "resolve it", failure.value());
  const auto blobs = blobs_of(root);
  if (!lies_in(real, root) && (blobs.empty() || real.parent_path() != blobs)) {
    reject("leads out by a symbolic link, to ", real);
  }
  return real;
}

}  // namespace coppice::io::detail
