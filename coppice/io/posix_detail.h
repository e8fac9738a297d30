#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coppice/base/file.h"

namespace coppice::io::detail {

using coppice::Descriptor;
using coppice::open_to_read;
using coppice::throw_io;

/// Makes a new file after unlinking an existing one, so that processes that have the old one open or mapped keep it.
/// Throws   Error{kIo}.
Descriptor create_file(const std::filesystem::path& path);
/// The same below an open directory. `path` is for messages alone.
Descriptor create_file_at(int directory, const char* name, const std::filesystem::path& path);

enum class Lock { kTaken, kHeldByAnother };
/// flock(2) with `how`. On file systems without locks (some network ones) everybody gets the lock.
///
/// Throws   Error{kInterrupted}.
Lock lock(const Descriptor& file, int how);

/// Whether both are the same file or directory.
bool is_same(const struct stat& a, const struct stat& b);
/// Whether `path` is `directory` or lies inside it, wherever links and mounts lead. `path` and directories above it need
/// not exist.
bool is_within(const std::filesystem::path& path, const std::filesystem::path& directory);

/// Adds the names in an open directory, without "." and "..", in no order; returns the error number, 0 for success.
int list_names(int directory, std::vector<std::string>& names);
/// The same; empty if it cannot be listed.
std::vector<std::string> names_in(int directory);

/// Copies the contents and mode of an open file; makes the parents of `to` and replaces an existing file. The copy is
/// removed if something fails or `is_unchanged` returns false at the end. `from` is for messages alone.
/// Throws   Error{kIo, kInterrupted}; Error{kFormat} for a file that changed.
void copy_open_file(const Descriptor& source, const std::filesystem::path& from, const std::filesystem::path& to,
                    const std::function<bool()>& is_unchanged);

/// Removes `name` of an open directory and all below it, following no links; missing entries are not an error. Returns
/// the first error number, 0 for success.
int remove_tree_at(int directory, const char* name);

/// Allocates the whole file at once, so that a full disk is detected now and not after hours; existing contents stay.
/// If the file system cannot allocate, only the length is set.
/// Throws   Error{kIo} naming `subject`.
void allocate(const Descriptor& file, uint64_t bytes, std::string_view subject);

/// Writes all of `bytes` at `offset`, or at the file's own position if `offset` is negative. Returns the error
/// number, 0 for success.
int write_all(int fd, std::span<const std::byte> bytes, int64_t offset);

/// Throws   Error{kIo}.
void sync(const Descriptor& file, const std::filesystem::path& path);
void sync_directory(const std::filesystem::path& path);

/// fsync of every file and directory below, and of `directory` itself; symbolic links are not followed.
/// Throws   Error{kIo}; std::filesystem::filesystem_error if it cannot be listed.
void sync_tree(const std::filesystem::path& directory);

/// Renames `from` of one open directory to `to` of another, never replacing; returns the error number, 0 for success.
/// On file systems without RENAME_NOREPLACE, the check and the rename are two steps.
int rename_new(int from_directory, const char* from, int to_directory, const char* to);

/// The directory that holds `path`: "." for a bare name.
std::filesystem::path parent_of(const std::filesystem::path& path);

/// `name` for a message: in quotes, on one line (base/text.h, `shown`), shortened if it is very long.
std::string quote(std::string_view name);

}  // namespace coppice::io::detail
