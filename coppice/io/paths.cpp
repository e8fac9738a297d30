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

// `models--ORG--NAME/snapshots/REVISION` -> `models--ORG--NAME/blobs`; none if the path has another form.
fs::path blobs_of(const fs::path& directory) {
  const auto snapshots = directory.parent_path();
  return snapshots.filename() == "snapshots" ? snapshots.parent_path() / "blobs" : fs::path();
}

template <class... Found>
[[noreturn]] void reject(std::string_view subject, const fs::path& relative, const Found&... found) {
  throw Error(ErrorCode::kFormat, cat(subject, ": ", quote(relative.string()), " ", found...,
                                      "; wanted a file inside the directory (copy the file there)"));
}

}  // namespace

void check_relative(std::string_view subject, const fs::path& relative) {
  if (relative.empty() || relative.is_absolute()) reject(subject, relative, "is not a relative path");
  if (relative.native().find('\0') != std::string::npos) reject(subject, relative, "contains a NUL");
  if (std::ranges::find(relative, fs::path("..")) != relative.end())
    reject(subject, relative, "leaves the directory by '..'");
}

fs::path resolve_inside(const fs::path& directory, const fs::path& relative) {
  check_relative(directory.string(), relative);
  std::error_code failure;
  const auto root = fs::canonical(directory, failure);
  if (failure) throw_io(directory.string(), "resolve it", failure.value());
  const auto real = fs::weakly_canonical(root / relative, failure);
  if (failure) throw_io((root / relative).string(), "resolve it", failure.value());
  const auto blobs = blobs_of(root);
  if (!lies_in(real, root) && (blobs.empty() || real.parent_path() != blobs)) {
    reject(directory.string(), relative, "leaves the directory by a symbolic link, to ", real);
  }
  return real;
}

}  // namespace coppice::io::detail
