#pragma once

// Output files of a size known beforehand, written in large pieces from several threads or processes, past the page
// cache where the file system lets them.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "coppice/io/safetensors.h"

namespace coppice::io {

/// What disks read and write at once: offsets and addresses that agree modulo this can be written directly, and reflinks
/// take whole blocks.
inline constexpr uint64_t kBlockBytes = 4096;

/// Memory whose start is aligned to a block. Its pages are the kernel's again when it goes.
///
/// Memory   what was touched of `bytes`.
class BlockBuffer {
 public:
  /// Throws   Error{kIo} if the system has no such amount.
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
/// Threads  write(), clone() and sync() may be called from any thread; several processes may have the file open, if they
///          write different bytes.
class BlockFile {
 public:
  /// Makes the file and claims its space; a file of this length that is there already keeps its bytes. A symbolic link,
  /// a file with a second name (a hard link) and one of another length are replaced and never written into.
  /// Throws   Error{kIo} (no room: before the first byte, where the file system can claim).
  BlockFile(std::filesystem::path path, uint64_t bytes);
  ~BlockFile();
  BlockFile(const BlockFile&) = delete;
  BlockFile& operator=(const BlockFile&) = delete;

  /// Whether the file can hold bytes of an earlier run: it is there, as the constructor would keep it.
  static bool would_keep(const std::filesystem::path& path, uint64_t bytes);

  /// Writes at `offset`. Whole blocks go directly if the address of `bytes` agrees with `offset` modulo kBlockBytes;
  /// what lies before and after them, through the page cache.
  /// Throws   Error{kIo} (disk full).
  void write(uint64_t offset, std::span<const std::byte> bytes);
  /// Makes `bytes` at `offset` share the disk's bytes of `source`; false where that cannot be (see
  /// SafetensorsFile::clone), and from then on at once.
  bool clone(uint64_t offset, const SafetensorsFile& source, uint64_t source_offset, uint64_t bytes);
  /// Brings what was written to the disk. Throws Error{kIo}.
  void sync();

 private:
  bool write_blocks(uint64_t offset, std::span<const std::byte> bytes);
  void write_buffered(uint64_t offset, std::span<const std::byte> bytes);

  std::filesystem::path path_;
  int buffered_ = -1, direct_ = -1;
  std::atomic<bool> direct_on_ = false, clones_ = true;
};

}  // namespace coppice::io
