#include "coppice/io/output_place.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

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

constexpr std::string_view kAdvice = " (choose another name, or remove it first)";

[[noreturn]] void refuse_file(const fs::path& output, std::string_view problem) {
  throw Error(ErrorCode::kUsage, cat("out: ", output, ": ", problem));
}

bool is_kind(const fs::path& path, const OutputKind& kind) {
  std::error_code none;
  if (fs::file_size(path, none) == 0 && !none) return true;
  try {
    return kind.is(path);
  } catch (const Error&) {
    return false;
  }
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
  if (::fstatat(parent_.get(), name_.c_str(), &mine, 0) == 0 && detail::is_same(mine, *source)) {
    refuse_input(given_, "is", input);
  }
  if (detail::is_within(parent_path_, input)) refuse_input(given_, "lies inside", input);
}

void check_output_directory(const fs::path& output, const fs::path& input, bool shared) {
  const auto here = status_of(output), source = status_of(input);
  if (here && source && detail::is_same(*here, *source)) refuse_input(output, "is", input);
  const auto [parent, name] = split_name(output);
  if (!status_of(parent)) return;  // later code reports a missing parent, or checks again
  const OutputPlace place(output);
  if (source) place.check_apart_from(input);
  if (!shared) place.check_free();
}

void check_output_file(const fs::path& output, const OutputKind& kind, std::span<const fs::path> inputs) {
  std::error_code none;
  const fs::path real = fs::weakly_canonical(fs::absolute(output), none);
  for (const auto& input : inputs) {
    const fs::path from = fs::weakly_canonical(fs::absolute(input), none);
    if (real == from) refuse_file(output, "is an input of this command and would be overwritten (choose another name)");
    if (fs::exists(from / "config.json", none) && detail::is_within(real.parent_path(), from)) {
      refuse_file(output, cat("lies inside the model ", input, "; wanted a path outside of it (choose another name)"));
    }
  }
  const auto status = fs::status(output, none);
  if (!fs::exists(status)) return;
  if (!fs::is_regular_file(status)) refuse_file(output, cat("exists and is not a file", kAdvice));
  if (!is_kind(output, kind))
    refuse_file(output,
                cat("exists and is not a file of ", kind.name, ", the only kind that would be replaced", kAdvice));
}

std::optional<DirectoryLock> DirectoryLock::take(const fs::path& directory) {
  Descriptor open(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!open) throw_io(directory.string(), "open it", errno);
  if (detail::lock(open, LOCK_EX | LOCK_NB) == detail::Lock::kHeldByAnother) return std::nullopt;
  return DirectoryLock(std::move(open));
}

}  // namespace coppice::io
