#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/io/model_directory.h"
#include "coppice/io/safetensors.h"

namespace coppice::io {

/// The tensors of a Hugging Face model directory: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` names.
///
/// Memory   headers only: about 150 bytes for each tensor, and its name.
class Checkpoint {
 public:
  /// Throws   Error{kNotFound}: no directory, no config.json, no weights, a missing shard. Error{kFormat}: an index
  ///          that leaves the directory (absolute, "..", symlinked out), a file of it that is a named pipe, a device or
  ///          a directory; an index that names a tensor its shard does not have, or misses one that a shard has. If the
  ///          directory has both a single file and an index, the single file is used, as in transformers.
  ///          Error{kUnsupported}: a config.json that names other weights.
  static Checkpoint open(const std::filesystem::path& directory);
  Checkpoint(Checkpoint&&) = default;  // entries point into the shards, so there are no copies
  Checkpoint& operator=(Checkpoint&&) = default;

  const std::filesystem::path& directory() const { return files_.path(); }
  const ModelDirectory& files() const { return files_; }                  ///< every other file of the directory
  const Json& config() const { return config_; }                          ///< config.json
  const std::vector<SafetensorsFile>& shards() const { return shards_; }  ///< by file name
  std::vector<std::string> names() const;                                 ///< sorted

  struct Entry {
    const SafetensorsFile* file = nullptr;
    const TensorInfo* info = nullptr;
    std::span<const std::byte> data() const { return file->data(*info); }
  };
  const std::vector<Entry>& entries() const { return entries_; }  ///< entries of all tensors, sorted by name
  /// The index of the tensor in `entries`, if it exists.
  std::optional<size_t> find(std::string_view name) const;
  /// Throws   Error{kNotFound} naming the tensor.
  Entry at(std::string_view name) const;
  bool contains(std::string_view name) const;
  /// Widened to f32. Throws Error{kShape} if the dtype is not a floating-point type.
  std::vector<float> read_f32(std::string_view name) const;

  uint64_t total_bytes() const;

  /// From now on, files that describe a quantisation are left out of copies (io/file_rules.h).
  void leave_out_quantisation() { leaves_out_quantisation_ = true; }
  bool leaves_out_quantisation() const { return leaves_out_quantisation_; }

 private:
  explicit Checkpoint(ModelDirectory files) : files_(std::move(files)) {}

  ModelDirectory files_;
  Json config_;
  std::vector<SafetensorsFile> shards_;
  std::vector<Entry> entries_;
  bool leaves_out_quantisation_ = false;
};

/// Which tensors go into which file.
struct ShardLayout {
  struct Shard {
    std::string file;  ///< "model.safetensors" or "model-00001-of-00002.safetensors"
    std::vector<TensorInfo> tensors;
  };
  std::vector<Shard> shards;
  uint64_t total_bytes = 0;
};
/// `<stem>-00001-of-00002`: one of `count` files, as Hugging Face numbers shards.
std::string numbered(std::string_view stem, size_t number, size_t count);
/// `<stem>-00001-of-00002.safetensors`.
std::string shard_name(std::string_view stem, size_t number, size_t count);

/// Splits tensors, in order, into shards of at most `max_shard_bytes` (a larger tensor gets its own shard) and names
/// their files as Hugging Face does. Fills in the byte counts.
ShardLayout lay_out_shards(std::vector<TensorInfo> tensors, uint64_t max_shard_bytes, std::string_view stem = "model");

/// Writes `<stem>.safetensors.index.json` for more than one shard; nothing for one.
void write_shard_index(const std::filesystem::path& directory, const ShardLayout& layout,
                       std::string_view stem = "model");

/// SHA-256 over the sorted (name, dtype, shape) list, the architecture keys of config.json and the bytes of the tensors
/// named in `router_tensors`.
///
/// Keys of config.json that change neither function nor layout are ignored: transformers_version, torch_dtype, dtype,
/// _name_or_path, use_cache, architectures. Neither do the order of keys, the spelling of numbers (10000, 10000.0) and
/// the split into shards.
///
/// Memory   one router tensor at a time, mapped.
/// Throws   Error{kNotFound} naming a router tensor that the checkpoint lacks.
std::string model_digest(const Checkpoint& checkpoint, const std::vector<std::string>& router_tensors);

}  // namespace coppice::io
