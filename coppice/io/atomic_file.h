#pragma once

#include <filesystem>
#include <string_view>

namespace coppice::io {

/// A directory that appears under its final name whole or not at all: filled as the sibling `.NAME.tmp-PID`, fsynced, renamed.
/// The destructor of an uncommitted one removes what was written.
class AtomicDirectory {
 public:
  /// Throws   Error{kIo} (no parent, no permission); Error{kUsage} if `target` exists.
  explicit AtomicDirectory(std::filesystem::path target);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  /// Where to write.
  const std::filesystem::path& path() const { return temporary_; }
  /// fsync of every file and directory in it, then rename. Throws Error{kIo}.
  void commit();

 private:
  std::filesystem::path target_, temporary_;
  bool committed_ = false;
};

/// Writes `text` to `path` by a temporary sibling, fsync and rename. Replaces what was there. Throws Error{kIo}.
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// Whole file as text. Throws Error{kNotFound, kIo}.
std::string read_file(const std::filesystem::path& path);

/// Copies one regular file (following a symbolic link), mode kept, parents made. Throws Error{kIo}.
void copy_file(const std::filesystem::path& from, const std::filesystem::path& to);

/// Throws   Error{kIo} with both figures if the file system of `directory` has less than `bytes` free.
void check_free_space(const std::filesystem::path& directory, uint64_t bytes);

/// Throws Error{kUsage} if `output` exists, or lies inside `input` or is it.
void check_output_directory(const std::filesystem::path& output, const std::filesystem::path& input);

}  // namespace coppice::io
