#include "coppice/io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/io/pending_file.h"
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
    if (n > 0 || (n < 0 && errno == EINTR)) {
      check_interrupt();
      continue;
    }
    if (n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) return {errno, false};
    break;
  }
  std::vector<std::byte> buffer(size_t{1} << 20);
  while (true) {
    check_interrupt();
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
  PendingFile file(path);
  file.append(std::as_bytes(std::span(text)));
  file.settle();
  file.rename();
}

std::string read_file(const fs::path& path) {
  return read_text(open_to_read(path), path, std::numeric_limits<uint64_t>::max());
}

void detail::copy_open_file(const Descriptor& source, const fs::path& from, const fs::path& to,
                            const std::function<bool()>& is_unchanged) {
  struct stat status{};
  if (::fstat(source.get(), &status) != 0) throw_io(from.string(), "read its size", errno);
  std::error_code failure;
  if (fs::equivalent(from, to, failure)) throw Error(ErrorCode::kIo, cat(from, ": cannot copy it onto itself, ", to));
  fs::create_directories(parent_of(to), failure);
  if (failure) throw_io(parent_of(to).string(), "make the directory", failure.value());
  auto target = create_file(to);
  try {
    if (const auto r = copy_bytes(source.get(), target.get()); r.error_number != 0) {
      throw_io((r.is_read ? from : to).string(), r.is_read ? "read it" : "write it", r.error_number);
    }
    if (!is_unchanged()) {
      throw Error(ErrorCode::kFormat,
                  cat(from, ": changed while it was copied (do not change it until the command has ended)"));
    }
    if (::fchmod(target.get(), status.st_mode & 0777) != 0) throw_io(to.string(), "set its mode", errno);
    if (const int number = target.close(); number != 0) throw_io(to.string(), "write it", number);
  } catch (...) {
    ::unlink(to.c_str());
    throw;
  }
}

void check_free_space(const fs::path& directory, uint64_t bytes) {
  auto place = fs::absolute(directory);
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

}  // namespace coppice::io
