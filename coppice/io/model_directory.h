#pragma once

// The files of a model directory, which is input from anybody: the one way to them.

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

// Of the files that coppice adds to those of Hugging Face.
inline constexpr const char* kLineageFile = "coppice.json";  ///< how the model came to be
inline constexpr const char* kTrainerFolder = "trainer";     ///< the state of `coppice train`
inline constexpr const char* kTrainerFile = "trainer.json";  ///< in it, beside the optimizer's shards

/// A directory whose files are named relative to it. Whatever lies there, a call reads a regular file inside the
/// directory or throws: symbolic links that lead out, "..", named pipes, devices and directories in place of files are
/// refused at once, and so is a file that changes while it is read.
///
/// A symbolic link may lead out of the directory only in the Hugging Face cache, where the files of
/// `snapshots/REVISION` are links to `../../blobs/HASH`.
///
/// Memory   none but what a call returns.
/// Threads  any.
class ModelDirectory {
 public:
  static constexpr uint64_t kMostTextBytes = uint64_t{256} << 20;  ///< of a file that is read whole

  /// Throws   Error{kNotFound}: no such directory. Error{kIo}.
  explicit ModelDirectory(std::filesystem::path directory);

  const std::filesystem::path& path() const { return path_; }

  /// Whether something has this name, be it a link to nowhere: opening it then says what is wrong.
  bool has(const std::filesystem::path& relative) const;
  bool has_folder(const std::filesystem::path& relative) const;
  /// Names in the directory or in a folder of it, sorted; none if there is no such folder.
  std::vector<std::string> names(const std::filesystem::path& folder = {}) const;

  static constexpr int kMostFolders = 64;  ///< one in another

  enum class Entry {
    kOther,        ///< a file, a link, a pipe ...
    kFolder,       ///< `look` says whether to go in
    kEmptyFolder,  ///< said after kFolder, of one that was gone into
  };
  /// Tells `look` of everything below, names in order, a folder before what is in it. Links are told of and not followed.
  /// Each folder is opened from the one that holds it, so that the time is as the number of entries.
  ///
  /// Memory   the names of the folders on the way.
  /// Throws   Error{kUnsupported}: more than kMostFolders one in another; Error{kIo}; what `look` throws.
  void walk(const std::function<bool(const std::filesystem::path& relative, Entry entry)>& look) const;

  /// All of what follows:
  /// Throws   Error{kNotFound}; Error{kFormat}: a path or link that leads out, no regular file, a file longer than
  ///          `max_bytes` or one that changed meanwhile; Error{kIo, kInterrupted}.
  Descriptor open(const std::filesystem::path& relative) const;
  std::string read(const std::filesystem::path& relative, uint64_t max_bytes = kMostTextBytes) const;
  Json read_json(const std::filesystem::path& relative, const JsonLimits& limits = {}) const;
  SafetensorsFile open_tensors(const std::filesystem::path& relative) const;
  std::string sha256(const std::filesystem::path& relative) const;
  /// Copies a file, its mode too; parents are made, what lay at `to` is replaced. The bytes move inside the kernel where
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
