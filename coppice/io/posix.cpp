#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io::detail {

int Descriptor::close() {
  if (fd_ < 0) return 0;
  // Linux frees the number whatever close returns, so there is no second try.
  return ::close(std::exchange(fd_, -1)) == 0 ? 0 : errno;
}

void throw_io(std::string_view subject, std::string_view action, int error_number) {
  std::string reason;
  switch (error_number) {
    case ENOSPC: reason = "no space left on the device (free some, or write to another disk)"; break;
    case EDQUOT: reason = "no space left in the disk quota (free some, or write to another disk)"; break;
    case EFBIG: reason = "no space left under the file-size limit (raise it with `ulimit -f`)"; break;
    case EACCES:
    case EPERM: reason = "permission denied (check owner and mode)"; break;
    case EROFS: reason = "the file system is read-only (write elsewhere)"; break;
    default: reason = std::generic_category().message(error_number);
  }
  throw Error(ErrorCode::kIo, cat(subject, ": cannot ", action, ": ", reason));
}

Descriptor open_to_read(const std::filesystem::path& path) {
  // O_NONBLOCK: a named pipe must not hang the open; it changes nothing for regular files.
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file) {
    const int number = errno;
    if (number == ENOENT || number == ENOTDIR) throw Error(ErrorCode::kNotFound, cat(path, ": no such file"));
    throw_io(path.string(), "open it", number);
  }
  return file;
}

Descriptor create_file(const std::filesystem::path& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw_io(path.string(), "replace it", errno);
  Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!file) throw_io(path.string(), "create it", errno);
  return file;
}

void allocate(const Descriptor& file, uint64_t bytes, std::string_view subject) {
  const auto size = static_cast<off_t>(bytes);
  if (size == 0) return;  // which fallocate refuses
  int result;
  do result = ::fallocate(file.get(), 0, 0, size);
  while (result != 0 && errno == EINTR);
  if (result == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS) throw_io(subject, cat("claim ", bytes_text(bytes)), errno);
  if (::ftruncate(file.get(), size) != 0) throw_io(subject, cat("grow it to ", bytes_text(bytes)), errno);
}

int write_all(int fd, std::span<const std::byte> bytes, int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n =
        offset < 0 ? ::write(fd, bytes.data(), bytes.size()) : ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    if (n == 0) return EIO;
    bytes = bytes.subspan(static_cast<size_t>(n));
    if (offset >= 0) offset += n;
  }
  return 0;
}

void sync(const Descriptor& file, const std::filesystem::path& path) {
  while (::fsync(file.get()) != 0) {
    if (errno == EINTR) continue;
    // Some network file systems have no fsync of directories.
    if (errno == EINVAL || errno == ENOTSUP) return;
    throw_io(path.string(), "bring it to disk", errno);
  }
}

void sync_directory(const std::filesystem::path& path) {
  const Descriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) throw_io(path.string(), "open it", errno);
  sync(directory, path);
}

void sync_tree(const std::filesystem::path& directory) {
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.is_symlink()) continue;
    if (entry.is_directory())
      sync_tree(entry.path());
    else if (entry.is_regular_file())
      sync(open_to_read(entry.path()), entry.path());
  }
  sync_directory(directory);
}

int rename_new(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return errno;
  std::error_code missing;
  if (std::filesystem::exists(std::filesystem::symlink_status(to, missing))) return EEXIST;
  return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

std::filesystem::path without_trailing_slash(std::filesystem::path path) {
  path = path.lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

std::filesystem::path parent_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::string quote(std::string_view name) {
  constexpr size_t kLongest = 200;
  std::string out = "'";
  for (const char c : name.substr(0, kLongest)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  out += name.size() > kLongest ? "...'" : "'";
  return out;
}

}  // namespace coppice::io::detail
