#pragma once

// Files of the operating system. All files that coppice reads are opened here.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace coppice {

/// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { close(); }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    close();
    fd_ = std::exchange(other.fd_, -1);
    return *this;
  }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  /// Closes the file; returns the error number of close(2), 0 for success.
  int close();

 private:
  int fd_ = -1;
};

/// Throws   Error{kIo}: "SUBJECT: cannot ACTION: reason (what to do)"; a full disk, quota or file-size limit reads "no
///          space left".
[[noreturn]] void throw_io(std::string_view subject, std::string_view action, int error_number);

/// Identifies a file and its state: if the file is changed or replaced, one of these values differs.
struct FileState {
  uint64_t device = 0, inode = 0, bytes = 0;
  int64_t modified_ns = 0;  ///< since 1970
  bool operator==(const FileState&) const = default;
};

/// Opens a regular file for reading. Named pipes, devices, sockets and directories are refused at once: opening a pipe
/// would wait for a writer.
///
/// Throws   Error{kNotFound} if there is no such file; Error{kFormat} if it is something else; Error{kIo}.
Descriptor open_to_read(const std::filesystem::path& path);

/// The same below an open directory, where `name` must not be a symbolic link. `path` is only used in messages.
Descriptor open_to_read_at(int directory, const std::filesystem::path& name, const std::filesystem::path& path);

/// Throws   Error{kIo} naming `path`.
FileState state_of(const Descriptor& file, const std::filesystem::path& path);

/// Reads at most `out.size()` bytes, from the file's own position. Returns how many; 0 at the end.
///
/// Throws   Error{kIo}; Error{kInterrupted} if a signal came in between.
size_t read_some(const Descriptor& file, std::span<std::byte> out, const std::filesystem::path& path);

/// A file mapped read-only; an empty one maps to nothing. Its pages come and go with the page cache.
///
/// Threads  any.
class MappedFile {
 public:
  /// `path` is for messages alone. Throws Error{kIo}.
  MappedFile(Descriptor file, std::filesystem::path path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }
  const Descriptor& file() const { return file_; }
  /// Reading a page past the end of a file kills the process, so this is asked before bytes are looked at. What is cut
  /// off while they are looked at is left to the program's handler (base/interrupt.h).
  ///
  /// Throws   Error{kIo} if the file was cut short since it was mapped.
  void check_whole() const;
  [[noreturn]] void throw_truncated(uint64_t bytes_now) const;

 private:
  Descriptor file_;
  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

/// Passes the bytes of a file to `take`, piece by piece.
///
/// Memory   one piece of 256 KiB.
/// Throws   as open_to_read and read_some.
void read_pieces(const std::filesystem::path& path, const std::function<void(std::span<const std::byte>)>& take);

/// The whole of a file as text.
///
/// Memory   the text.
/// Throws   as open_to_read; Error{kFormat} if it is longer than `max_bytes`; Error{kInterrupted}.
std::string read_file(const std::filesystem::path& path, uint64_t max_bytes = std::numeric_limits<uint64_t>::max());

/// The first `max_bytes` of a file, or all. Throws as read_file.
std::string read_start(const std::filesystem::path& path, size_t max_bytes);

/// The rest of an open file as text.
///
/// Memory   the text.
/// Throws   Error{kFormat} if it is longer than `max_bytes`; Error{kIo, kInterrupted}.
std::string read_text(const Descriptor& file, const std::filesystem::path& path, uint64_t max_bytes);

/// Waits until something can be read from a pipe or socket, or its other end is closed; a signal ends the wait.
///
/// Throws   Error{kInterrupted}.
void wait_to_read(int fd);
/// The same until something can be written.
void wait_to_write(int fd);

}  // namespace coppice
