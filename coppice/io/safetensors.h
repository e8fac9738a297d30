#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/file.h"
#include "coppice/io/dtype.h"
#include "coppice/io/tensor_info.h"

namespace coppice::io {

/// A safetensors file, its header fully checked, its data mapped read-only.
///
/// Memory   about 150 bytes for each tensor, and its name; data pages are in the page cache.
class SafetensorsFile {
 public:
  /// Throws   Error{kNotFound, kIo}; Error{kFormat} naming file and tensor: header length past the file or over 100 MB,
  ///          broken JSON, unknown dtype, negative or overflowing shape, offsets that overlap, leave a gap, run past
  ///          the end or differ from shape times dtype, duplicate names.
  static SafetensorsFile open(const std::filesystem::path& path);
  /// As open(path), for an open file; `path` is used as its name.
  static SafetensorsFile open(Descriptor file, const std::filesystem::path& path);

  const std::filesystem::path& path() const;
  const std::vector<TensorInfo>& tensors() const;              ///< by offset
  const std::map<std::string, std::string>& metadata() const;  ///< "__metadata__"
  const TensorInfo* find(std::string_view name) const;
  /// The mapped bytes. Throws Error{kIo} if the file was truncated since it was opened.
  std::span<const std::byte> data(const TensorInfo& tensor) const;
  /// Fills `out` with the bytes from `offset` of the data section on, by pread, so that no pages of the file stay
  /// mapped.
  /// Throws   Error{kIo}, also if the file was truncated since it was opened.
  void read(uint64_t offset, std::span<std::byte> out) const;
  /// Makes `bytes` at `to_offset` of the file open as `to` share these bytes on the disk (a reflink); false if the file
  /// system cannot, or the offsets are not multiples of a block.
  bool clone(uint64_t offset, uint64_t bytes, int to, uint64_t to_offset) const;
  /// Tells the kernel that these pages are no longer needed, so that resident memory stays bounded.
  void release(const TensorInfo& tensor) const;
  /// Offset of the data section in the file.
  uint64_t data_start() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

/// The layout of a safetensors file, computed before its tensors.
struct SafetensorsLayout {
  uint64_t header_bytes = 0;        ///< where the data starts: at a whole block of the disk
  std::vector<TensorInfo> tensors;  ///< with offsets and byte counts
  std::map<std::string, std::string> metadata;
  uint64_t file_bytes = 0;

  /// Length, JSON and spaces.
  std::string header() const;
  /// The same in pieces of 1 MiB, which are computed for each call; the last is shorter.
  void each_header_piece(const std::function<void(std::string_view)>& take) const;
};
/// Lays out `tensors` one after another, in the given order. `path` is only used in messages.
///
/// Throws   Error{kUnsupported} if the header exceeds 100 MB, the limit of readers.
SafetensorsLayout lay_out(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                          const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

/// Writes one safetensors file whose header is known beforehand; tensors may be written in any order, in pieces. An
/// existing file is unlinked, never written into; the destructor of an unfinished writer removes the file.
///
/// Memory   none beyond the caller's pieces (pwrite).
/// Threads  write() may be called from any thread.
class SafetensorsWriter {
 public:
  /// Fills in the offsets and byte counts of `tensors` (in the order given, which must be the order wanted on disk),
  /// allocates the file's space and writes the header.
  /// Throws   Error{kIo}; Error{kUnsupported} if the header exceeds 100 MB, the limit of readers.
  SafetensorsWriter(std::filesystem::path path, std::vector<TensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});
  /// The same file written by several processes, each of which writes other bytes: one makes it, then the others join.
  /// finish() cannot know whether all bytes are there: the processes compare their `bytes_written` with `data_bytes`.
  /// Those who join do not remove the file.
  ///
  /// Throws   Error{kIo}, also if the file is not there with its whole length (it is on a disk of another machine).
  static SafetensorsWriter make_shared(std::filesystem::path path, std::vector<TensorInfo> tensors);
  static SafetensorsWriter join(std::filesystem::path path, std::vector<TensorInfo> tensors);
  ~SafetensorsWriter();
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) = delete;

  const std::vector<TensorInfo>& tensors() const;
  const TensorInfo& tensor(std::string_view name) const;
  /// Throws   Error{kIo} (disk full, file-size limit), naming file and tensor.
  void write(const TensorInfo& tensor, uint64_t offset_in_tensor, std::span<const std::byte> bytes);
  uint64_t bytes_written() const;  ///< of tensors, by this process
  uint64_t data_bytes() const;     ///< of all tensors
  /// fsync and close. Throws Error{kIo}; Error{kInternal} if bytes are missing or were written twice (by the
  /// only writer).
  void finish();

 private:
  struct State;
  explicit SafetensorsWriter(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

}  // namespace coppice::io
