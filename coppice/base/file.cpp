#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/file_detail.h"
#include "coppice/base/text.h"

namespace coppice::detail {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void fail(const std::filesystem::path& path, int error) {
  if (error == ENOENT || error == ENOTDIR) {
    throw Error(ErrorCode::kNotFound, cat(path, ": there is no such file (check the path)"));
  }
  throw Error(ErrorCode::kIo, cat(path, ": cannot be read: ", std::strerror(error)));
}

}  // namespace

void read_pieces(const std::filesystem::path& path, const std::function<void(std::span<const std::byte>)>& take) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) fail(path, errno);
  std::vector<std::byte> piece(size_t{256} << 10);
  for (;;) {
    const ssize_t got = ::read(file.get(), piece.data(), piece.size());
    if (got == 0) return;
    if (got > 0) {
      take(std::span(piece).first(static_cast<size_t>(got)));
    } else if (errno != EINTR) {
      fail(path, errno);
    }
  }
}

std::string read_text(const std::filesystem::path& path, uint64_t max_bytes) {
  std::string text;
  read_pieces(path, [&](std::span<const std::byte> piece) {
    if (text.size() + piece.size() > max_bytes) {
      throw Error(ErrorCode::kFormat,
                  cat(path, ": is longer than ", bytes_text(max_bytes), ", the most such a file may have"));
    }
    text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  });
  return text;
}

}  // namespace coppice::detail
