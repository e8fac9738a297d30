#include "coppice/io/output_place.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

constexpr int kFolder = O_PATH | O_DIRECTORY | O_CLOEXEC;

bool is_same(const struct stat& a, const struct stat& b) { return a.st_ino == b.st_ino && a.st_dev == b.st_dev; }

// Compares directories, not names, from the inside out.
bool lies_in(int folder, const struct stat& directory, const fs::path& named) {
  Descriptor held;
  struct stat here{}, above{};
  if (::fstat(folder, &here) != 0) throw_io(named.string(), "read its directory", errno);
  while (!is_same(here, directory)) {
    Descriptor next(::openat(held ? held.get() : folder, "..", kFolder));
    if (!next || ::fstat(next.get(), &above) != 0) throw_io(named.string(), "read the directories above it", errno);
    if (is_same(above, here)) return false;  // the root
    here = above;
    held = std::move(next);
  }
  return true;
}

[[noreturn]] void refuse_input(const fs::path& output, std::string_view how, const fs::path& input) {
  throw Error(ErrorCode::kUsage, cat("output ", output, ": ", how, " the input ", input,
                                     "; wanted a directory outside of it (choose another output)"));
}

[[noreturn]] void refuse_taken(const fs::path& output) {
  throw Error(ErrorCode::kUsage,
              cat("output ", output, ": exists already; wanted a new directory (remove it, or choose another)"));
}

std::optional<struct stat> status_of(const fs::path& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 ? std::optional(status) : std::nullopt;
}

/// Splits off the last name; "out/" names the same directory as "out".
std::pair<fs::path, std::string> split_name(const fs::path& output) {
  if (output.empty()) throw Error(ErrorCode::kUsage, "output '': is empty; wanted the name of a new directory");
  const fs::path whole = output.has_filename() ? output : output.parent_path();
  std::string name = whole.filename().string();
  if (name.empty() || name == "." || name == "..") {
    if (status_of(output)) refuse_taken(output);
    throw Error(ErrorCode::kUsage, cat("output ", output, ": ends in ", name.empty() ? "no name" : cat("'", name, "'"),
                                       "; wanted the name of a new directory"));
  }
  return {detail::parent_of(whole), std::move(name)};
}

}  // namespace

OutputPlace::OutputPlace(const fs::path& output) : given_(output) {
  auto [parent, name] = split_name(output);
  name_ = std::move(name);
  std::error_code failure;
  parent_path_ = fs::canonical(parent, failure);
  if (failure) throw_io(output.string(), "find its parent directory", failure.value());
  parent_ = Descriptor(::open(parent_path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!parent_) throw_io(output.string(), "open its parent directory", errno);
}

bool OutputPlace::is_taken() const {
  struct stat status{};
  return ::fstatat(parent_.get(), name_.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
}

void OutputPlace::check_free() const {
  if (is_taken()) refuse_taken(given_);
}

void OutputPlace::check_apart_from(const fs::path& input) const {
  const auto source = status_of(input);
  if (!source) throw_io(input.string(), "read its state", errno);
  struct stat mine{};
  if (::fstatat(parent_.get(), name_.c_str(), &mine, 0) == 0 && is_same(mine, *source)) {
    refuse_input(given_, "is", input);
  }
  if (lies_in(parent_.get(), *source, given_)) refuse_input(given_, "lies inside", input);
}

void check_output_directory(const fs::path& output, const fs::path& input) {
  const auto here = status_of(output), source = status_of(input);
  if (here && source && is_same(*here, *source)) refuse_input(output, "is", input);
  const auto [parent, name] = split_name(output);
  if (!status_of(parent)) return;  // later code reports a missing parent, or checks again
  const OutputPlace place(output);
  if (source) place.check_apart_from(input);
  place.check_free();
}

}  // namespace coppice::io
