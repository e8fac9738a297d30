#include "coppice/io/checkpoint.h"

#include <algorithm>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/paths_detail.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/shard_index_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

constexpr size_t kNamesShown = 10;
constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

using detail::WeightMap;

bool is_there(const fs::path& path) {
  std::error_code failure;
  return fs::exists(path, failure);
}

WeightMap read_index(const fs::path& directory) {
  return detail::parse_shard_index(Json::read(detail::resolve_inside(directory, kIndexFile)),
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
  std::map<std::string, const SafetensorsFile*> by_file;
  for (const auto& shard : shards) by_file.emplace(shard.path().lexically_relative(directory).string(), &shard);
  std::vector<std::string> problems;
  for (const auto& [tensor, file] : map) {
    const auto it = by_file.find(fs::path(file).lexically_normal().string());
    if (it == by_file.end() || !it->second->find(tensor)) {
      problems.push_back(cat(detail::quote(tensor), " is not in ", file, " as the index says"));
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
  out.config_ = Json::read(detail::resolve_inside(directory, "config.json"));
  if (!out.config_.is_object()) {
    throw Error(ErrorCode::kFormat,
                cat(directory / "config.json", ": no JSON object; wanted the model's configuration"));
  }
  if (is_there(directory / kSingleFile)) {
    out.shards_ = open_shards(directory, {std::string(kSingleFile)});
  } else if (is_there(directory / kIndexFile)) {
    const auto map = read_index(directory);
    std::set<std::string> files;
    for (const auto& [tensor, file] : map) files.insert(fs::path(file).lexically_normal().string());
    out.shards_ = open_shards(directory, files);
    check_index(directory, map, out.shards_);
  } else {
    throw Error(ErrorCode::kNotFound, cat(directory, ": no weights; wanted ", kSingleFile, " or ", kIndexFile,
                                          " (other formats: save the model again with safetensors)"));
  }
  for (const auto& shard : out.shards_) {
    for (const auto& t : shard.tensors()) out.entries_.emplace_back(t.name, Entry{&shard, &t});
  }
  std::ranges::sort(out.entries_, {}, &std::pair<std::string, Entry>::first);
  std::vector<std::string> twice;
  for (size_t i = 1; i < out.entries_.size(); ++i) {
    const auto& [before, here] = std::pair(out.entries_[i - 1], out.entries_[i]);
    if (before.first != here.first) continue;
    twice.push_back(cat(detail::quote(here.first), " is in ", before.second.file->path().filename(), " and in ",
                        here.second.file->path().filename()));
  }
  if (!twice.empty()) {
    throw Error(ErrorCode::kFormat, cat(directory, ": ", join_some(twice, kNamesShown), "; wanted each tensor once"));
  }
  return out;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> out;
  out.reserve(entries_.size());
  for (const auto& [name, entry] : entries_) out.push_back(name);
  return out;
}

bool Checkpoint::contains(std::string_view name) const {
  return std::ranges::binary_search(entries_, name, {}, [](const auto& e) -> std::string_view { return e.first; });
}

Checkpoint::Entry Checkpoint::at(std::string_view name) const {
  const auto it =
      std::ranges::lower_bound(entries_, name, {}, [](const auto& e) -> std::string_view { return e.first; });
  if (it == entries_.end() || it->first != name) {
    throw Error(ErrorCode::kNotFound, cat(directory_, ": no tensor ", detail::quote(name), suggestion(name, names())));
  }
  return it->second;
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
  for (const auto& [name, entry] : entries_) total += entry.info->bytes;
  return total;
}

}  // namespace coppice::io
