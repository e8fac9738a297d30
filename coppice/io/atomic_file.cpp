#include "coppice/io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

using detail::parent_of;
using detail::throw_io;

// Moves the bytes inside the kernel as far as it can, the rest (another file system, an old kernel) through a buffer.
// Returns the error number and whether reading or writing failed.
struct CopyResult {
  int error_number = 0;
  bool is_read = false;
};
CopyResult copy_bytes(int from, int to) {
  constexpr size_t kAtOnce = size_t{1} << 30;
  while (true) {
    const ssize_t n = ::copy_file_range(from, nullptr, to, nullptr, kAtOnce, 0);
    if (n > 0 || (n < 0 && errno == EINTR)) continue;
    if (n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) return {errno, false};
    break;
  }
  std::vector<std::byte> buffer(size_t{1} << 20);
  while (true) {
    const ssize_t n = ::read(from, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return {errno, true};
    if (n == 0) return {};
    const int number = detail::write_all(to, std::span(buffer).first(static_cast<size_t>(n)), -1);
    if (number != 0) return {number, false};
  }
}

}  // namespace

void write_file_atomically(const fs::path& path, std::string_view text) {
  static std::atomic<uint64_t> count = 0;
  const auto temporary =
      parent_of(path) / cat(".", path.filename(), ".tmp-", static_cast<int64_t>(::getpid()), "-", ++count);
  auto file = detail::create_file(temporary);
  try {
    if (const int number = detail::write_all(file.get(), std::as_bytes(std::span(text)), 0); number != 0) {
      throw_io(path.string(), "write it", number);
    }
    detail::sync(file, temporary);
    if (const int number = file.close(); number != 0) throw_io(path.string(), "write it", number);
    if (::rename(temporary.c_str(), path.c_str()) != 0) throw_io(path.string(), "put it in place", errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  detail::sync_directory(parent_of(path));
}

std::string read_file(const fs::path& path) {
  const auto file = detail::open_to_read(path);
  struct stat status;
  if (::fstat(file.get(), &status) != 0) throw_io(path.string(), "read its size", errno);
  std::string text;
  // One byte more than its size, so that the end shows at the first read; files of /proc have size 0 and text.
  size_t filled = 0;
  text.resize(static_cast<size_t>(std::max<off_t>(status.st_size, 0)) + 1);
  while (true) {
    if (filled == text.size()) text.resize(2 * text.size());
    const ssize_t n = ::read(file.get(), text.data() + filled, text.size() - filled);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_io(path.string(), "read it", errno);
    if (n == 0) break;
    filled += static_cast<size_t>(n);
  }
  text.resize(filled);
  return text;
}

void copy_file(const fs::path& from, const fs::path& to) {
  const auto source = detail::open_to_read(from);
  struct stat status;
  if (::fstat(source.get(), &status) != 0) throw_io(from.string(), "read its size", errno);
  if (!S_ISREG(status.st_mode)) throw Error(ErrorCode::kIo, cat(from, ": cannot copy it: no regular file"));
  std::error_code failure;
  if (fs::equivalent(from, to, failure)) throw Error(ErrorCode::kIo, cat(from, ": cannot copy it onto itself, ", to));
  fs::create_directories(parent_of(to), failure);
  if (failure) throw_io(parent_of(to).string(), "make the directory", failure.value());
  auto target = detail::create_file(to);
  try {
    if (const auto r = copy_bytes(source.get(), target.get()); r.error_number != 0) {
      throw_io((r.is_read ? from : to).string(), r.is_read ? "read it" : "write it", r.error_number);
    }
    if (::fchmod(target.get(), status.st_mode & 0777) != 0) throw_io(to.string(), "set its mode", errno);
    if (const int number = target.close(); number != 0) throw_io(to.string(), "write it", number);
  } catch (...) {
    ::unlink(to.c_str());
    throw;
  }
}

void check_free_space(const fs::path& directory, uint64_t bytes) {
  auto place = fs::absolute(directory).lexically_normal();
  std::error_code missing;
  while (!fs::exists(place, missing) && place.has_relative_path()) place = place.parent_path();
  struct statvfs status;
  if (::statvfs(place.c_str(), &status) != 0) throw_io(place.string(), "read its free space", errno);
  const uint64_t available = static_cast<uint64_t>(status.f_bavail) * status.f_frsize;
  if (available < bytes) {
    throw Error(ErrorCode::kIo, cat(directory, ": ", bytes_text(available), " free; wanted ", bytes_text(bytes),
                                    " (free some, or write to another disk)"));
  }
}

void check_output_directory(const fs::path& output, const fs::path& input) {
  std::error_code missing;
  if (!input.empty()) {
    const auto real_output = fs::weakly_canonical(fs::absolute(output)).lexically_normal();
    const auto real_input = fs::weakly_canonical(fs::absolute(input)).lexically_normal();
    // "." is the input itself; a path that does not begin with ".." lies inside it.
    const auto relative = real_output.lexically_relative(real_input);
    if (!relative.empty() && *relative.begin() != "..") {
      throw Error(ErrorCode::kUsage, cat("output ", output, ": ", relative == "." ? "is" : "lies inside", " the input ",
                                         input, "; wanted a directory apart from it (give another output)"));
    }
  }
  if (fs::exists(fs::symlink_status(output, missing))) {
    throw Error(ErrorCode::kUsage,
                cat("output ", output, ": exists already; wanted a new directory (remove it or give another)"));
  }
}

}  // namespace coppice::io
