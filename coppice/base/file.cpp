#include "coppice/base/file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"

namespace coppice {
namespace {

constexpr size_t kPieceBytes = size_t{256} << 10;

// O_NONBLOCK: a named pipe must not hang the open; it changes nothing for regular files.
constexpr int kToRead = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

std::string_view kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a named pipe";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISLNK(mode)) return "a symbolic link";
  return "a device";
}

[[noreturn]] void refuse_kind(const std::filesystem::path& path, std::string_view kind) {
  throw Error(ErrorCode::kFormat, cat(path, ": is ", kind, "; wanted a regular file (put the file itself there)"));
}

/// The file that `open` opened (it returns a file descriptor or -1), if it is a regular file.
template <class Open>
Descriptor checked(const Open& open, const std::filesystem::path& path) {
  Descriptor file(open());
  while (!file && errno == EINTR) {  // which network file systems may return
    check_interrupt();
    file = Descriptor(open());
  }
  if (!file) {
    const int number = errno;
    if (number == ENOENT || number == ENOTDIR) {
      throw Error(ErrorCode::kNotFound, cat(path, ": no such file (check the path)"));
    }
    if (number == ENXIO) refuse_kind(path, "a socket or a device without a driver");
    if (number == ELOOP) refuse_kind(path, "a symbolic link");
    throw_io(path.string(), "open it", number);
  }
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) throw_io(path.string(), "read its size", errno);
  if (!S_ISREG(status.st_mode)) refuse_kind(path, kind_of(status.st_mode));
  return file;
}

void wait_for(int fd, short event) {
  constexpr int kLookAgainMs = 100;  // a signal that another thread took does not end poll
  pollfd wanted{.fd = fd, .events = event, .revents = 0};
  while (::poll(&wanted, 1, kLookAgainMs) <= 0) check_interrupt();
}

}  // namespace

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
  return checked([&] { return ::open(path.c_str(), kToRead); }, path);
}

Descriptor open_to_read_at(int directory, const std::filesystem::path& name, const std::filesystem::path& path) {
  return checked([&] { return ::openat(directory, name.c_str(), kToRead | O_NOFOLLOW); }, path);
}

FileState state_of(const Descriptor& file, const std::filesystem::path& path) {
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) throw_io(path.string(), "read its size", errno);
  return {.device = status.st_dev,
          .inode = status.st_ino,
          .bytes = static_cast<uint64_t>(status.st_size),
          .modified_ns = static_cast<int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec};
}

size_t read_some(const Descriptor& file, std::span<std::byte> out, const std::filesystem::path& path) {
  for (;;) {
    const ssize_t got = ::read(file.get(), out.data(), out.size());
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) throw_io(path.string(), "read it", errno);
    check_interrupt();
  }
}

std::string read_text(const Descriptor& file, const std::filesystem::path& path, uint64_t max_bytes) {
  const auto too_long = [&](uint64_t bytes) {
    if (bytes <= max_bytes) return;
    throw Error(ErrorCode::kFormat, cat(path, ": is longer than ", bytes_text(max_bytes),
                                        ", the limit for such a file (check that it is the right file)"));
  };
  const uint64_t size = state_of(file, path).bytes;
  too_long(size);
  // One byte more than its size, so that the end shows at the first read; files of /proc have size 0 and text.
  std::string text(static_cast<size_t>(size) + 1, '\0');
  size_t filled = 0;
  for (;;) {
    if (filled == text.size()) text.resize(text.size() + std::max(text.size(), kPieceBytes));
    const size_t got = read_some(file, std::as_writable_bytes(std::span(text).subspan(filled)), path);
    if (got == 0) break;
    filled += got;
    too_long(filled);
  }
  text.resize(filled);
  return text;
}

void wait_to_read(int fd) { wait_for(fd, POLLIN); }
void wait_to_write(int fd) { wait_for(fd, POLLOUT); }

MappedFile::MappedFile(Descriptor file, std::filesystem::path path) : file_(std::move(file)), path_(std::move(path)) {
  const auto size = static_cast<size_t>(state_of(file_, path_).bytes);
  if (size == 0) return;  // which mmap refuses
  const void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file_.get(), 0);
  if (address == MAP_FAILED) throw_io(path_.string(), "map it", errno);
  bytes_ = {static_cast<const std::byte*>(address), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::check_whole() const {
  if (const uint64_t now = state_of(file_, path_).bytes; now < bytes_.size()) throw_truncated(now);
}

void MappedFile::throw_truncated(uint64_t bytes_now) const {
  throw Error(ErrorCode::kIo,
              cat(path_, ": was truncated from ", bytes_.size(), " to ", bytes_now,
                  " bytes since it was opened (do not change files until the command has ended; write it again)"));
}

void read_pieces(const std::filesystem::path& path, const std::function<void(std::span<const std::byte>)>& take) {
  const Descriptor file = open_to_read(path);
  std::vector<std::byte> piece(kPieceBytes);
  while (const size_t got = read_some(file, piece, path)) take(std::span(piece).first(got));
}

std::string read_file(const std::filesystem::path& path, uint64_t max_bytes) {
  return read_text(open_to_read(path), path, max_bytes);
}

std::string read_start(const std::filesystem::path& path, size_t max_bytes) {
  const Descriptor file = open_to_read(path);
  std::string out(max_bytes, '\0');
  size_t size = 0;
  while (size < max_bytes) {
    const size_t n = read_some(file, std::as_writable_bytes(std::span(out)).subspan(size), path);
    if (n == 0) break;
    size += n;
  }
  out.resize(size);
  return out;
}

}  // namespace coppice
