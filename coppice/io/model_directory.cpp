#include "coppice/io/model_directory.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <functional>

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

/// Reads an open file by `use`, which must not be made of two states of it.
template <class Result>
Result unchanged(const Descriptor& file, const fs::path& path, const std::function<Result()>& use) {
  const FileState before = state_of(file, path);
  Result result = use();
  if (state_of(file, path) != before) {
    throw Error(ErrorCode::kFormat, cat(path, ": changed while it was read (leave it alone until this is done)"));
  }
  return result;
}

}  // namespace

ModelDirectory::ModelDirectory(fs::path directory) : path_(std::move(directory)) {
  std::error_code failure;
  if (!fs::is_directory(path_, failure)) {
    throw Error(ErrorCode::kNotFound,
                cat(path_.empty() ? "''" : path_.string(),
                    ": no such directory; wanted a directory with config.json and weights, or with a tokenizer.json"));
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

// What was resolved holds no link any more, and is opened folder by folder without following any: a link that is put
// there in between leads nowhere.
Descriptor ModelDirectory::open(const fs::path& relative) const {
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
