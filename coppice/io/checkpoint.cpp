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

/// Of config.json: the largest known have some thousand values.
constexpr JsonLimits kConfigLimits{.bytes = uint64_t{16} << 20, .values = 500'000};

using detail::WeightMap;

std::string_view name_of(const Checkpoint::Entry& entry) { return entry.info->name; }

bool is_there(const fs::path& path) {
  std::error_code failure;
  return fs::exists(path, failure);
}

WeightMap read_index(const fs::path& directory) {
  constexpr uint64_t kMostBytes = uint64_t{256} << 20;  // of a model with 200,000 tensors it has 25 MB
  const uint64_t bytes = fs::file_size(directory / kIndexFile);
  if (bytes > kMostBytes) {
    throw Error(ErrorCode::kFormat, cat(directory / kIndexFile, ": ", bytes, " bytes; wanted at most ", kMostBytes,
                                        " (this is no index, or a damaged one)"));
  }
  return detail::parse_shard_index(read_file(detail::resolve_inside(directory, kIndexFile)),
                                   (directory / kIndexFile).string());
}

// All shards, by name; every missing one is named at once.
std::vector<SafetensorsFile> open_shards(const fs::path& directory, const std::set<std::string>& files) {
  std::vector<std::string> missing;
  std::vector<fs::path> paths;
  for (const auto& file : files) {
    paths.push_back(directory / file);
    if (!is_there(detail::resolve_inside(directory, file))) missing.push_back(file);
  }
  if (!missing.empty()) {
    throw Error(ErrorCode::kNotFound, cat(directory, ": ", missing.size(), " of ", files.size(),
                                          " shards are missing: ", join_some(missing, kNamesShown),
                                          "; the index names them (download them)"));
  }
  std::vector<SafetensorsFile> shards;
  shards.reserve(paths.size());
  for (const auto& path : paths) shards.push_back(SafetensorsFile::open(path));
  return shards;
}

// The index and the shards must agree both ways.
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
        problems.push_back(cat(detail::quote(t.name), " is in ", shard.path().filename(), " and not in the index"));
    }
  }
  if (!problems.empty()) {
    throw Error(ErrorCode::kFormat, cat(directory, ": ", join_some(problems, kNamesShown),
                                        " (index and shards are of different models: download both again)"));
  }
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& directory) {
  std::error_code failure;
  if (!fs::is_directory(directory, failure)) {
    throw Error(ErrorCode::kNotFound, cat(directory, ": no such directory; wanted a Hugging Face model directory"));
  }
  if (!is_there(directory / "config.json")) {
    throw Error(ErrorCode::kNotFound, cat(directory, ": no config.json; wanted a Hugging Face model directory"));
  }
  Checkpoint out;
  out.directory_ = directory;
  out.config_ = Json::read(detail::resolve_inside(directory, "config.json"), kConfigLimits);
  if (!out.config_.is_object()) {
    throw Error(ErrorCode::kFormat,
                cat(directory / "config.json", ": no JSON object; wanted the model's configuration"));
  }
  if (is_there(directory / kSingleFile)) {
    out.shards_ = open_shards(directory, {std::string(kSingleFile)});
  } else if (is_there(directory / kIndexFile)) {
    const auto map = read_index(directory);
    std::set<std::string> files;
    for (const auto& file : map.files) files.insert(fs::path(file).lexically_normal().string());
    out.shards_ = open_shards(directory, files);
    check_index(directory, map, out.shards_);
  } else {
    throw Error(ErrorCode::kNotFound, cat(directory, ": no weights; wanted ", kSingleFile, " or ", kIndexFile,
                                          " (other formats: save the model again with safetensors)"));
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
  throw Error(ErrorCode::kNotFound, cat(directory_, ": no tensor ", detail::quote(name), suggestion(name, names())));
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
