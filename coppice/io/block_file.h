#pragma once

// Output files of known size, written in large pieces by several threads or processes, with direct I/O if the file
// system supports it.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "coppice/base/file.h"
#include "coppice/io/safetensors.h"

namespace coppice::io {

/// What disks read and write at once: offsets and addresses that agree modulo this can be written directly, and reflinks
/// take whole blocks.
inline constexpr uint64_t kBlockBytes = 4096;

/// Memory   whose start is aligned to a block. The destructor returns its pages to the kernel.
///
/// Memory   the pages of `bytes` that were used.
class BlockBuffer {
 public:
  /// Throws   Error{kIo} if the system does not have that much memory.
  explicit BlockBuffer(uint64_t bytes);
  ~BlockBuffer();
  BlockBuffer(const BlockBuffer&) = delete;
  BlockBuffer& operator=(const BlockBuffer&) = delete;

  std::span<std::byte> bytes() const { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// One output file.
///
/// Memory   none: bytes go straight to the disk, or through the page cache where direct I/O is refused (tmpfs, some
///          network file systems).
/// Threads  write(), clone() and sync() may be called from any thread; several processes may have the file open, if
///          they write different bytes.
class BlockFile {
 public:
  /// Makes the file and allocates its space; an existing file of this length keeps its bytes. A symbolic link, a file
  /// with a second name (a hard link) and a file of another length are replaced, never written into.
  /// Throws   Error{kIo} (no space; detected before the first byte if the file system can allocate).
  BlockFile(std::filesystem::path path, uint64_t bytes);
  BlockFile(const BlockFile&) = delete;
  BlockFile& operator=(const BlockFile&) = delete;

  /// Whether the constructor would keep an existing file with bytes of an earlier run.
  static bool would_keep(const std::filesystem::path& path, uint64_t bytes);

  /// Writes at `offset`. Whole blocks use direct I/O if the address of `bytes` equals `offset` modulo kBlockBytes; the
  /// bytes before and after them go through the page cache.
  /// Throws   Error{kIo} (disk full).
  void write(uint64_t offset, std::span<const std::byte> bytes);
  /// Makes `bytes` at `offset` share the disk's bytes of `source`; false if that is not possible (see
  /// SafetensorsFile::clone), and then for all later calls.
  bool clone(uint64_t offset, const SafetensorsFile& source, uint64_t source_offset, uint64_t bytes);
  /// Flushes written bytes to the disk. Throws Error{kIo}.
  void sync();

 private:
  bool write_blocks(uint64_t offset, std::span<const std::byte> bytes);
  void write_buffered(uint64_t offset, std::span<const std::byte> bytes);

  std::filesystem::path path_;
  Descriptor buffered_, direct_;
  std::atomic<bool> direct_on_ = false, clones_ = true;
};

}  // namespace coppice::io
