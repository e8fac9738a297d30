#include <algorithm>

#include "coppice/base/check.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/checkpoint.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/safetensors_header_detail.h"

namespace coppice::io {
namespace {

// Five digits at least.
std::string number_text(size_t value) {
  const auto digits = std::to_string(value);
  return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}

}  // namespace

std::string shard_name(std::string_view stem, size_t number, size_t count) {
  return cat(stem, "-", number_text(number), "-of-", number_text(count), ".safetensors");
}

ShardPlan plan_shards(std::vector<TensorInfo> tensors, uint64_t max_shard_bytes, std::string_view stem) {
  ShardPlan plan;
  plan.shards.emplace_back();
  uint64_t filled = 0;
  for (auto& t : tensors) {
    const auto bytes = detail::byte_count(t.dtype, t.shape);
    COPPICE_CHECK(bytes.has_value(), detail::quote(t.name), " has the shape ", shape_text(t.shape));
    t.bytes = *bytes;
    if (!plan.shards.back().tensors.empty() && (filled > max_shard_bytes || t.bytes > max_shard_bytes - filled)) {
      plan.shards.emplace_back();
      filled = 0;
    }
    filled += t.bytes;
    plan.total_bytes += t.bytes;
    plan.shards.back().tensors.push_back(std::move(t));
  }
  const size_t count = plan.shards.size();
  for (size_t i = 0; i < count; ++i) {
    plan.shards[i].file = count == 1 ? cat(stem, ".safetensors") : shard_name(stem, i + 1, count);
  }
  return plan;
}

void write_shard_index(const std::filesystem::path& directory, const ShardPlan& plan, std::string_view stem) {
  if (plan.shards.size() < 2) return;
  std::vector<std::pair<std::string_view, const std::string*>> map;
  for (const auto& shard : plan.shards) {
    for (const auto& t : shard.tensors) map.emplace_back(t.name, &shard.file);
  }
  std::ranges::sort(map, {}, [](const auto& entry) { return entry.first; });
  // As Json::dump(2) lays it out; of a large model a tree of it would take as much memory as all headers.
  std::string text = cat("{\n  \"metadata\": {\n    \"total_size\": ", plan.total_bytes, "\n  },\n  \"weight_map\": {");
  std::string_view separator = "\n    ";
  for (const auto& [tensor, file] : map) {
    text += separator;
    append_json_text(text, tensor);
    text += ": ";
    append_json_text(text, *file);
    separator = ",\n    ";
  }
  write_file_atomically(directory / cat(stem, ".safetensors.index.json"), text.append("\n  }\n}\n"));
}

}  // namespace coppice::io
