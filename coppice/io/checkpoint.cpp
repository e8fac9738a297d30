#include "coppice/io/checkpoint.h"

#include <algorithm>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/paths_detail.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/shard_index_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

constexpr size_t kNamesShown = 10;
constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

/// Limits for config.json; the largest known ones have a few thousand values.
constexpr JsonLimits kConfigLimits{.bytes = uint64_t{16} << 20, .values = 500'000};

using detail::WeightMap;

std::string_view name_of(const Checkpoint::Entry& entry) { return entry.info->name; }

WeightMap read_index(const ModelDirectory& files) {
  return detail::parse_shard_index(files.read(kIndexFile), (files.path() / kIndexFile).string());
}

// All shards by name; the error lists every missing one.
std::vector<SafetensorsFile> open_shards(const ModelDirectory& files, const std::set<std::string>& names) {
  std::vector<std::string> missing;
  std::error_code failure;
  for (const auto& name : names) {
    if (!fs::exists(detail::resolve_inside(files.path(), name), failure)) missing.push_back(name);
  }
  if (!missing.empty()) {
    throw Error(ErrorCode::kNotFound, cat(files.path(), ": ", missing.size(), " of ", names.size(),
                                          " shards are missing: ", join_some(missing, kNamesShown),
                                          "; the index names them (download them)"));
  }
  std::vector<SafetensorsFile> shards;
  shards.reserve(names.size());
  for (const auto& name : names) shards.push_back(files.open_tensors(name));
  return shards;
}

// The error for a directory without model.safetensors and without an index.
[[noreturn]] void refuse_without_weights(const ModelDirectory& files) {
  std::vector<std::string> others;
  for (const auto& name : files.names()) {
    if (name.ends_with(".safetensors")) others.push_back(name);
  }
  if (!others.empty()) {
    throw Error(
        ErrorCode::kNotFound,
        cat(files.path(), ": ", join_some(others, kNamesShown), " and neither ", kSingleFile, " nor ", kIndexFile,
            ", which says what belongs to the model (download or write the index; rename a single file)"));
  }
  throw Error(ErrorCode::kNotFound, cat(files.path(), ": has no weights; wanted ", kSingleFile, " or ", kIndexFile,
                                        " (other formats: save the model again with safetensors)"));
}

// transformers would load the file that this key names instead of the usual ones, and the output would not have it.
void check_named_weights(const fs::path& directory, const Json& config) {
  constexpr std::string_view kKey = "transformers_weights";
  const Json* named = config.find(kKey);
  if (named == nullptr || named->is_null()) return;
  throw Error(ErrorCode::kUnsupported,
              cat(directory / "config.json", ": '", kKey, "' names ", named->dump(), " as the weights; coppice reads ",
                  kSingleFile, " or what ", kIndexFile, " names (rename the file and remove the key)"));
}

// Checks that index and shards have the same tensors.
void check_index(const fs::path& directory, const WeightMap& map, const std::vector<SafetensorsFile>& shards) {
  std::map<std::string, const SafetensorsFile*> by_path;
  for (const auto& shard : shards) by_path.emplace(shard.path().lexically_relative(directory).string(), &shard);
  std::vector<const SafetensorsFile*> by_file;
  for (const auto& file : map.files) by_file.push_back(by_path.at(fs::path(file).lexically_normal().string()));
  std::vector<std::string> problems;
  for (const auto& [tensor, file] : map.tensors) {
    if (!by_file[file]->find(tensor)) {
      problems.push_back(cat(detail::quote(tensor), " is not in ", map.files[file], " as the index says"));
    }
  }
  for (const auto& shard : shards) {
    for (const auto& t : shard.tensors()) {
      if (!map.contains(t.name))
        problems.push_back(cat(detail::quote(t.name), " is in ", shard.path().filename(), " but not in the index"));
    }
  }
  if (!problems.empty()) {
    throw Error(ErrorCode::kFormat, cat(directory, ": ", join_some(problems, kNamesShown),
                                        " (index and shards are of different models: download both again)"));
  }
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& directory) {
  const ModelDirectory files(directory);
  if (!files.has("config.json")) {
    throw Error(ErrorCode::kNotFound, cat(directory, ": has no config.json; wanted a Hugging Face model directory"));
  }
  Checkpoint out(files);
  out.config_ = files.read_json("config.json", kConfigLimits);
  if (!out.config_.is_object()) {
    throw Error(ErrorCode::kFormat,
                cat(directory / "config.json", ": is not a JSON object; wanted the model's configuration"));
  }
  check_named_weights(directory, out.config_);
  if (files.has(kSingleFile)) {
    out.shards_ = open_shards(files, {std::string(kSingleFile)});
  } else if (files.has(kIndexFile)) {
    const auto map = read_index(files);
    std::set<std::string> names;
    for (const auto& file : map.files) names.insert(fs::path(file).lexically_normal().string());
    out.shards_ = open_shards(files, names);
    check_index(directory, map, out.shards_);
  } else {
    refuse_without_weights(files);
  }
  for (const auto& shard : out.shards_) {
    out.entries_.reserve(out.entries_.size() + shard.tensors().size());
    for (const auto& t : shard.tensors()) out.entries_.push_back({&shard, &t});
  }
  std::ranges::sort(out.entries_, {}, name_of);
  std::vector<std::string> twice;
  for (size_t i = 1; i < out.entries_.size(); ++i) {
    const Entry &before = out.entries_[i - 1], &here = out.entries_[i];
    if (name_of(before) != name_of(here)) continue;
    twice.push_back(cat(detail::quote(name_of(here)), " is in ", before.file->path().filename(), " and in ",
                        here.file->path().filename()));
  }
  if (!twice.empty()) {
    throw Error(ErrorCode::kFormat, cat(directory, ": ", join_some(twice, kNamesShown), "; wanted each tensor once"));
  }
  return out;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> out;
  out.reserve(entries_.size());
  for (const Entry& entry : entries_) out.push_back(entry.info->name);
  return out;
}

std::optional<size_t> Checkpoint::find(std::string_view name) const {
  const auto it = std::ranges::lower_bound(entries_, name, {}, name_of);
  if (it == entries_.end() || name_of(*it) != name) return std::nullopt;
  return static_cast<size_t>(it - entries_.begin());
}

bool Checkpoint::contains(std::string_view name) const { return find(name).has_value(); }

Checkpoint::Entry Checkpoint::at(std::string_view name) const {
  if (const auto index = find(name)) return entries_[*index];
  throw Error(ErrorCode::kNotFound,
              cat(directory(), ": has no tensor ", detail::quote(name), suggestion(name, names())));
}

std::vector<float> Checkpoint::read_f32(std::string_view name) const {
  const auto entry = at(name);
  if (!is_float(entry.info->dtype)) {
    throw Error(ErrorCode::kShape,
                cat(entry.file->path(), ": ", detail::quote(name), " is ", dtype_name(entry.info->dtype),
                    "; wanted F32, BF16 or F16 (dequantize the model first)"));
  }
  std::vector<float> out(static_cast<size_t>(entry.info->elements()));
  to_f32(entry.info->dtype, entry.data(), out);
  return out;
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t total = 0;
  for (const Entry& entry : entries_) total += entry.info->bytes;
  return total;
}

}  // namespace coppice::io
