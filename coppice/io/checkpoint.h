#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/io/safetensors.h"

namespace coppice::io {

/// The tensors of a Hugging Face model directory: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
///
/// Memory   headers only.
class Checkpoint {
 public:
  /// Throws   Error{kNotFound}: no directory, no config.json, no weights, a missing shard. Error{kFormat}: an index that leaves the directory
  ///          (absolute, "..", symlinked out), names a tensor its shard does not have, or misses one that a shard has.
  static Checkpoint open(const std::filesystem::path& directory);

  const std::filesystem::path& directory() const { return directory_; }
  const Json& config() const { return config_; }                          ///< config.json
  const std::vector<SafetensorsFile>& shards() const { return shards_; }  ///< by file name
  std::vector<std::string> names() const;                                 ///< sorted

  struct Entry {
    const SafetensorsFile* file = nullptr;
    const TensorInfo* info = nullptr;
    std::span<const std::byte> data() const { return file->data(*info); }
  };
  /// Throws   Error{kNotFound} naming the tensor.
  Entry at(std::string_view name) const;
  bool contains(std::string_view name) const;
  /// Widened to f32. Throws Error{kShape} if the dtype is no float.
  std::vector<float> read_f32(std::string_view name) const;

  /// Files of the directory that hold no weights and are no index (tokenizer, generation config, sub-directories other than `trainer/`), relative.
  std::vector<std::filesystem::path> companion_files() const;
  uint64_t total_bytes() const;

 private:
  std::filesystem::path directory_;
  Json config_;
  std::vector<SafetensorsFile> shards_;
  std::vector<std::pair<std::string, Entry>> entries_;  // sorted by name
};

/// Splits tensors, in order, into shards of at most `max_shard_bytes` (a larger tensor has one alone) and names their files as Hugging Face does.
struct ShardPlan {
  struct Shard {
    std::string file;  ///< "model.safetensors" or "model-00001-of-00002.safetensors"
    std::vector<TensorInfo> tensors;
  };
  std::vector<Shard> shards;
  uint64_t total_bytes = 0;
};
ShardPlan plan_shards(std::vector<TensorInfo> tensors, uint64_t max_shard_bytes, std::string_view stem = "model");

/// Writes `<stem>.safetensors.index.json` for a plan of more than one shard; nothing for one.
void write_shard_index(const std::filesystem::path& directory, const ShardPlan& plan, std::string_view stem = "model");

/// SHA-256 over the sorted (name, dtype, shape) list, the architecture keys of config.json and the bytes of the tensors named in `router_tensors`.
std::string model_digest(const Checkpoint& checkpoint, const std::vector<std::string>& router_tensors);

}  // namespace coppice::io
