#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io::detail {
namespace fs = std::filesystem;
namespace {

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
    const int number = write_all(to, std::span(buffer).first(static_cast<size_t>(n)), -1);
    if (number != 0) return {number, false};
  }
}

}  // namespace

Descriptor create_file(const std::filesystem::path& path) { return create_file_at(AT_FDCWD, path.c_str(), path); }

Descriptor create_file_at(int directory, const char* name, const std::filesystem::path& path) {
  if (::unlinkat(directory, name, 0) != 0 && errno != ENOENT) throw_io(path.string(), "replace it", errno);
  Descriptor file(::openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!file) throw_io(path.string(), "create it", errno);
  return file;
}

Lock lock(const Descriptor& file, int how) {
  while (::flock(file.get(), how) != 0) {
    if (errno == EWOULDBLOCK) return Lock::kHeldByAnother;
    if (errno != EINTR) break;
    check_interrupt();
  }
  return Lock::kTaken;
}

bool is_same(const struct stat& a, const struct stat& b) { return a.st_ino == b.st_ino && a.st_dev == b.st_dev; }

bool is_within(const fs::path& path, const fs::path& directory) {
  std::error_code none;
  fs::path here = fs::weakly_canonical(fs::absolute(path), none);
  while (!fs::equivalent(here, directory, none)) {
    if (!here.has_relative_path()) return false;
    here = here.parent_path();
  }
  return true;
}

int list_names(int directory, std::vector<std::string>& names) {
  const int copy = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) return errno;
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(copy), ::closedir);
  if (!entries) {
    const int number = errno;
    ::close(copy);
    return number;
  }
  errno = 0;
  while (const dirent* entry = ::readdir(entries.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  return errno;
}

std::vector<std::string> names_in(int directory) {
  std::vector<std::string> names;
  (void)list_names(directory, names);
  return names;
}

void copy_open_file(const Descriptor& source, const fs::path& from, const fs::path& to,
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

int remove_tree_at(int directory, const char* name) {
  if (::unlinkat(directory, name, 0) == 0 || errno == ENOENT) return 0;
  if (errno != EISDIR && errno != EPERM) return errno;
  const Descriptor folder(::openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder) return errno == ENOENT ? 0 : errno;
  for (const std::string& entry : names_in(folder.get())) {
    if (const int number = remove_tree_at(folder.get(), entry.c_str()); number != 0) return number;
  }
  return ::unlinkat(directory, name, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : errno;
}

void allocate(const Descriptor& file, uint64_t bytes, std::string_view subject) {
  const auto size = static_cast<off_t>(bytes);
  if (size == 0) return;  // fallocate refuses 0 bytes
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
    throw_io(path.string(), "flush it to disk", errno);
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

int rename_new(int from_directory, const char* from, int to_directory, const char* to) {
  if (::renameat2(from_directory, from, to_directory, to, RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return errno;
  struct stat there{};
  if (::fstatat(to_directory, to, &there, AT_SYMLINK_NOFOLLOW) == 0) return EEXIST;
  return ::renameat(from_directory, from, to_directory, to) == 0 ? 0 : errno;
}

std::filesystem::path parent_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::string quote(std::string_view name) {
  constexpr size_t kLongest = 200;
  size_t end = std::min(name.size(), kLongest);
  while (end > 0 && end < name.size() && (static_cast<unsigned char>(name[end]) & 0xc0) == 0x80) --end;
  return cat("'", shown(name.substr(0, end)), end < name.size() ? "...'" : "'");
}

}  // namespace coppice::io::detail
