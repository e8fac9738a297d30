#include "coppice/io/model_directory.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "coppice/base/error.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/io/paths_detail.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

constexpr int kFolder = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

fs::file_type type_of(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type();
}

/// Reads an open file by `use`; an error if the file changed in the meantime.
template <class Result>
Result unchanged(const Descriptor& file, const fs::path& path, const std::function<Result()>& use) {
  const FileState before = state_of(file, path);
  Result result = use();
  if (state_of(file, path) != before) {
    throw Error(ErrorCode::kFormat,
                cat(path, ": changed while it was read (do not change it until the command has ended)"));
  }
  return result;
}

}  // namespace

ModelDirectory::ModelDirectory(fs::path directory) : path_(std::move(directory)) {
  std::error_code failure;
  if (!fs::is_directory(path_, failure)) {
    throw Error(ErrorCode::kNotFound,
                cat(path_.empty() ? "''" : path_.string(),
                    ": does not exist; wanted a directory with config.json and weights, or with a tokenizer.json"));
  }
  real_ = fs::canonical(path_, failure);
  if (failure) detail::throw_io(path_.string(), "resolve it", failure.value());
  Descriptor root(::open(real_.c_str(), kFolder));
  if (!root) detail::throw_io(path_.string(), "open it", errno);
  root_ = std::make_shared<const Descriptor>(std::move(root));
}

bool ModelDirectory::has(const fs::path& relative) const {
  const auto type = type_of(path_ / relative);
  return type != fs::file_type::not_found && type != fs::file_type::none;
}

bool ModelDirectory::has_folder(const fs::path& relative) const {
  std::error_code ignored;
  return fs::is_directory(path_ / relative, ignored);
}

std::vector<std::string> ModelDirectory::names(const fs::path& folder) const {
  std::vector<std::string> out;
  if (!folder.empty() && !has_folder(folder)) return out;
  std::error_code failure;
  const fs::path real = folder.empty() ? real_ : detail::resolve_inside(path_, folder);
  for (auto it = fs::directory_iterator(real, failure); !failure && it != fs::directory_iterator();
       it.increment(failure)) {
    out.push_back(it->path().filename().string());
  }
  if (failure) detail::throw_io((path_ / folder).string(), "list it", failure.value());
  std::ranges::sort(out);
  return out;
}

void ModelDirectory::walk(const Look& look) const { walk(root_->get(), {}, 0, look); }

void ModelDirectory::walk(int folder, const fs::path& relative, int depth, const Look& look) const {
  std::vector<std::string> names;
  if (const int number = detail::list_names(folder, names); number != 0) {
    detail::throw_io((path_ / relative).string(), "list it", number);
  }
  if (names.empty() && depth > 0) look(relative, Entry::kEmptyFolder);
  std::ranges::sort(names);
  for (const std::string& name : names) {
    const fs::path below = relative / name;
    struct stat status{};
    const bool is_there = ::fstatat(folder, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
    if (!is_there && errno != ENOENT) detail::throw_io((path_ / below).string(), "read its state", errno);
    if (!is_there || !S_ISDIR(status.st_mode)) {
      look(below, Entry::kOther);
      continue;
    }
    if (!look(below, Entry::kFolder)) continue;
    if (depth == kMostFolders) {
      throw Error(ErrorCode::kUnsupported,
                  cat(path_, ": ", detail::quote(relative.string()), " contains a directory at depth ",
                      kMostFolders + 1, "; wanted a depth of at most ", kMostFolders, " (move it away)"));
    }
    const Descriptor next(::openat(folder, name.c_str(), kFolder));
    if (!next) detail::throw_io((path_ / below).string(), "open it", errno);
    walk(next.get(), below, depth + 1, look);
  }
}

/// Opens directory by directory from the root; none if there is a link or an error on the way, which `open` handles.
Descriptor ModelDirectory::open_without_links(const fs::path& relative) const {
  Descriptor folder;
  int at = root_->get();
  for (const fs::path& part : relative.parent_path()) {
    if (part == "." || part.empty()) continue;
    Descriptor next(::openat(at, part.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!next) return {};
    folder = std::move(next);
    at = folder.get();
  }
  struct stat status{};
  const fs::path name = relative.filename();
  const bool is_file = ::fstatat(at, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(status.st_mode);
  return is_file ? open_to_read_at(at, name, path_ / relative) : Descriptor();
}

// The resolved path has no links and is opened directory by directory without following any, so that a link put there
// in the meantime has no effect.
Descriptor ModelDirectory::open(const fs::path& relative) const {
  detail::check_relative(path_.string(), relative);
  if (Descriptor file = open_without_links(relative)) return file;
  const fs::path name = path_ / relative, real = detail::resolve_inside(path_, relative);
  const bool is_blob = std::ranges::mismatch(real_, real).in1 != real_.end();
  Descriptor folder;
  if (is_blob) {
    folder = Descriptor(::open(real.parent_path().c_str(), kFolder));
    if (!folder) detail::throw_io(name.string(), "open its folder", errno);
    return open_to_read_at(folder.get(), real.filename(), name);
  }
  const fs::path inside = real.lexically_relative(real_);
  int at = root_->get();
  for (const fs::path& part : inside.parent_path()) {
    Descriptor next(::openat(at, part.c_str(), kFolder));
    if (!next && (errno == ENOENT || errno == ENOTDIR)) {
      throw Error(ErrorCode::kNotFound, cat(name, ": no such file (check the path)"));
    }
    if (!next) detail::throw_io(name.string(), "open its folder", errno);
    folder = std::move(next);
    at = folder.get();
  }
  return open_to_read_at(at, inside.filename(), name);
}

std::string ModelDirectory::read(const fs::path& relative, uint64_t max_bytes) const {
  const auto file = open(relative);
  const fs::path name = path_ / relative;
  return unchanged<std::string>(file, name, [&] { return read_text(file, name, max_bytes); });
}

Json ModelDirectory::read_json(const fs::path& relative, const JsonLimits& limits) const {
  return Json::parse(read(relative, limits.bytes), (path_ / relative).string(), limits);
}

SafetensorsFile ModelDirectory::open_tensors(const fs::path& relative) const {
  return SafetensorsFile::open(open(relative), path_ / relative);
}

std::string ModelDirectory::sha256(const fs::path& relative) const {
  const auto file = open(relative);
  const fs::path name = path_ / relative;
  return unchanged<std::string>(file, name, [&] {
    Sha256 digest;
    std::vector<std::byte> piece(size_t{256} << 10);
    while (const size_t got = read_some(file, piece, name)) digest.add(std::span(piece).first(got));
    return digest.hex();
  });
}

void ModelDirectory::copy(const fs::path& relative, const fs::path& to) const {
  const auto file = open(relative);
  const fs::path name = path_ / relative;
  const FileState before = state_of(file, name);
  const auto is_unchanged = [&] { return state_of(file, name) == before && state(relative) == before; };
  detail::copy_open_file(file, name, to, is_unchanged);
}

std::optional<FileState> ModelDirectory::state(const fs::path& relative) const {
  if (!has(relative)) return std::nullopt;
  return state_of(open(relative), path_ / relative);
}

}  // namespace coppice::io
