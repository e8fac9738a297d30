#include "coppice/io/block_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/safetensors_header_detail.h"

namespace coppice::io {
namespace {

uint64_t round_up(uint64_t n) { return (n + kBlockBytes - 1) / kBlockBytes * kBlockBytes; }
uint64_t round_down(uint64_t n) { return n / kBlockBytes * kBlockBytes; }

// Whether an existing file may be written into: no link, no second name, and the wanted length.
bool is_own(int fd, uint64_t bytes) {
  struct stat status;
  return ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 1 &&
         static_cast<uint64_t>(status.st_size) == bytes;
}

Descriptor open_own(const std::filesystem::path& path, uint64_t bytes) {
  Descriptor file(::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  if (file && !is_own(file.get(), bytes)) return {};
  return file;
}

}  // namespace

BlockBuffer::BlockBuffer(uint64_t bytes) : size_(static_cast<size_t>(round_up(std::max<uint64_t>(bytes, 1)))) {
  void* address = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) {
    throw Error(ErrorCode::kIo, cat("not enough memory for a buffer of ", bytes_text(size_), " (use fewer --threads)"));
  }
  data_ = static_cast<std::byte*>(address);
}

BlockBuffer::~BlockBuffer() { ::munmap(data_, size_); }

bool BlockFile::would_keep(const std::filesystem::path& path, uint64_t bytes) {
  return static_cast<bool>(open_own(path, bytes));
}

BlockFile::BlockFile(std::filesystem::path path, uint64_t bytes) : path_(std::move(path)) {
  auto file = open_own(path_, bytes);
  if (!file) {
    file = detail::create_file(path_);
    try {
      detail::allocate(file, bytes, path_.string());
    } catch (...) {
      ::unlink(path_.c_str());
      throw;
    }
  }
  // Opened through the descriptor, so that both are surely the same file.
  direct_ = Descriptor(::open(cat("/proc/self/fd/", file.get()).c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC));
  direct_on_ = static_cast<bool>(direct_);
  buffered_ = std::move(file);
}

void BlockFile::write(uint64_t offset, std::span<const std::byte> bytes) {
  const uint64_t first = round_up(offset), end = round_down(offset + bytes.size());
  if (!direct_on_ || first >= end || reinterpret_cast<uintptr_t>(bytes.data()) % kBlockBytes != offset % kBlockBytes) {
    write_buffered(offset, bytes);
    return;
  }
  const auto before = static_cast<size_t>(first - offset), blocks = static_cast<size_t>(end - first);
  if (!write_blocks(first, bytes.subspan(before, blocks))) {
    write_buffered(offset, bytes);
    return;
  }
  write_buffered(offset, bytes.first(before));
  write_buffered(end, bytes.subspan(before + blocks));
}

// False if the file system accepts the flag but then refuses the write.
bool BlockFile::write_blocks(uint64_t offset, std::span<const std::byte> bytes) {
  const int number = detail::write_all(direct_.get(), bytes, static_cast<int64_t>(offset));
  if (number == 0) return true;
  if (number != EINVAL && number != ENOTSUP) detail::throw_io(path_.string(), "write it", number);
  direct_on_ = false;
  return false;
}

void BlockFile::write_buffered(uint64_t offset, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const int number = detail::write_all(buffered_.get(), bytes, static_cast<int64_t>(offset));
  if (number != 0) detail::throw_io(path_.string(), "write it", number);
  constexpr size_t kLarge = size_t{1} << 20;
  // A hint: the kernel starts to write large pieces now instead of all at the end.
  if (bytes.size() >= kLarge) {
    ::sync_file_range(buffered_.get(), static_cast<off_t>(offset), static_cast<off_t>(bytes.size()),
                      SYNC_FILE_RANGE_WRITE);
  }
}

bool BlockFile::clone(uint64_t offset, const SafetensorsFile& source, uint64_t source_offset, uint64_t bytes) {
  const uint64_t from = source.data_start() + source_offset;
  if (!clones_ || offset % kBlockBytes != 0 || from % kBlockBytes != 0 || bytes % kBlockBytes != 0) return false;
  if (source.clone(source_offset, bytes, buffered_.get(), offset)) return true;
  clones_ = false;
  return false;
}

void BlockFile::sync() {
  while (::fdatasync(buffered_.get()) != 0) {
    if (errno == EINTR) continue;
    if (errno == EINVAL || errno == ENOTSUP) return;
    detail::throw_io(path_.string(), "flush it to disk", errno);
  }
}

}  // namespace coppice::io
