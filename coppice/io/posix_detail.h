#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace coppice::io::detail {

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
  /// The error number of close(2), 0 if it went well.
  int close();

 private:
  int fd_ = -1;
};

/// Throws   Error{kIo}: "SUBJECT: cannot ACTION: reason (what to do)"; a full disk, quota or file-size limit reads "no
///          space left".
[[noreturn]] void throw_io(std::string_view subject, std::string_view action, int error_number);

/// Opens for reading. Throws Error{kNotFound} if there is no such file, else Error{kIo}.
Descriptor open_to_read(const std::filesystem::path& path);

/// Makes a new file, after unlinking what had its name: whoever has the old one open or mapped keeps it whole.
/// Throws   Error{kIo}.
Descriptor create_file(const std::filesystem::path& path);

/// Claims the whole file at once, so that a full disk shows here and not after hours; what it holds stays. Where the
/// file system cannot claim, the file gets its length alone.
/// Throws   Error{kIo} naming `subject`.
void allocate(const Descriptor& file, uint64_t bytes, std::string_view subject);

/// Writes all of `bytes` at `offset`, or at the file's own position if `offset` is negative.
/// Returns the error number, 0 if it went well.
int write_all(int fd, std::span<const std::byte> bytes, int64_t offset);

/// Throws   Error{kIo}.
void sync(const Descriptor& file, const std::filesystem::path& path);
void sync_directory(const std::filesystem::path& path);

/// fsync of every file and directory below, and of `directory` itself; symbolic links are not followed.
/// Throws   Error{kIo}; std::filesystem::filesystem_error where it cannot be listed.
void sync_tree(const std::filesystem::path& directory);

/// Renames, never replacing; the error number, 0 if it went well. File systems without RENAME_NOREPLACE leave a moment
/// between the look and the rename.
int rename_new(const std::filesystem::path& from, const std::filesystem::path& to);

/// "out/" names the same directory as "out".
std::filesystem::path without_trailing_slash(std::filesystem::path path);

/// The directory that holds `path`: "." for a bare name.
std::filesystem::path parent_of(const std::filesystem::path& path);

/// `name` as it stands in a message: in quotes, control characters replaced, cut where it is very long.
std::string quote(std::string_view name);

}  // namespace coppice::io::detail
