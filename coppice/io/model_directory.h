#pragma once

// The files of a model directory, which may come from anybody. All code reads them through this class.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/file.h"
#include "coppice/base/json.h"
#include "coppice/io/safetensors.h"

namespace coppice::io {

// Names of the files that coppice adds to those of Hugging Face.
inline constexpr const char* kLineageFile = "coppice.json";  ///< how the model was made
inline constexpr const char* kTrainerFolder = "trainer";     ///< the state of `coppice train`
inline constexpr const char* kTrainerFile = "trainer.json";  ///< in that directory, beside the optimizer's shards

/// A directory with files named relative to it. Each call reads a regular file inside the directory or throws: symbolic
/// links that lead out, "..", named pipes, devices, directories in place of files, and files that change while they are
/// read are refused.
///
/// A symbolic link may lead out of the directory only in the Hugging Face cache, where the files of
/// `snapshots/REVISION` are links to `../../blobs/HASH`.
///
/// Memory   only what a call returns.
/// Threads  any.
class ModelDirectory {
 public:
  static constexpr uint64_t kMostTextBytes = uint64_t{256} << 20;  ///< limit of a file that is read completely

  /// Throws   Error{kNotFound}: no such directory. Error{kIo}.
  explicit ModelDirectory(std::filesystem::path directory);

  const std::filesystem::path& path() const { return path_; }

  /// Whether the name exists, even as a dangling link (opening it then gives an error).
  bool has(const std::filesystem::path& relative) const;
  bool has_folder(const std::filesystem::path& relative) const;
  /// Names in the directory or in one of its subdirectories, sorted; empty if that does not exist.
  std::vector<std::string> names(const std::filesystem::path& folder = {}) const;

  static constexpr int kMostFolders = 64;  ///< maximum depth

  enum class Entry {
    kOther,        ///< a file, a link, a pipe ...
    kFolder,       ///< `look` returns whether to enter it
    kEmptyFolder,  ///< reported after kFolder for a directory that was entered
  };
  /// Calls `look` for everything below, in the order of names, a directory before its contents. Links are reported but
  /// not followed. Each directory is opened from its parent, so that the time is linear in the number of entries.
  ///
  /// Memory   the names of the directories on the path.
  /// Throws   Error{kUnsupported}: a depth of more than kMostFolders; Error{kIo}; what `look` throws.
  void walk(const std::function<bool(const std::filesystem::path& relative, Entry entry)>& look) const;

  /// All functions below:
  /// Throws   Error{kNotFound}; Error{kFormat}: a path or link that leads out, not a regular file, a file longer than
  ///          `max_bytes` or one that changed while it was read; Error{kIo, kInterrupted}.
  Descriptor open(const std::filesystem::path& relative) const;
  std::string read(const std::filesystem::path& relative, uint64_t max_bytes = kMostTextBytes) const;
  Json read_json(const std::filesystem::path& relative, const JsonLimits& limits = {}) const;
  SafetensorsFile open_tensors(const std::filesystem::path& relative) const;
  std::string sha256(const std::filesystem::path& relative) const;
  /// Copies a file with its mode; makes parents and replaces an existing file at `to`. The kernel copies the bytes if
  /// it can (copy_file_range, reflinks).
  ///
  /// Memory   1 MiB at most.
  void copy(const std::filesystem::path& relative, const std::filesystem::path& to) const;
  /// None if there is no such file.
  std::optional<FileState> state(const std::filesystem::path& relative) const;

 private:
  using Look = std::function<bool(const std::filesystem::path&, Entry)>;
  Descriptor open_without_links(const std::filesystem::path& relative) const;
  void walk(int folder, const std::filesystem::path& relative, int depth, const Look& look) const;

  std::filesystem::path path_, real_;
  std::shared_ptr<const Descriptor> root_;
};

}  // namespace coppice::io
