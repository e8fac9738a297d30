#include <algorithm>
#include <iterator>

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

// No less than a tensor takes in a header: dtype, offsets and sizes at their longest.
uint64_t most_header_bytes(const TensorInfo& t) {
  std::string name;
  append_json_text(name, t.name);
  return name.size() + 100 + 20 * t.shape.size();
}

constexpr uint64_t kLongestHeader = detail::kMaxHeaderBytes - (uint64_t{1} << 20);  // metadata takes some too

}  // namespace

std::string numbered(std::string_view stem, size_t number, size_t count) {
  return cat(stem, "-", number_text(number), "-of-", number_text(count));
}

std::string shard_name(std::string_view stem, size_t number, size_t count) {
  return numbered(stem, number, count) + ".safetensors";
}

ShardLayout lay_out_shards(std::vector<TensorInfo> tensors, uint64_t max_shard_bytes, std::string_view stem) {
  ShardLayout layout;
  std::vector<size_t> begins = {0};
  uint64_t filled = 0, header = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    TensorInfo& t = tensors[i];
    const auto bytes = detail::byte_count(t.dtype, t.shape);
    COPPICE_CHECK(bytes.has_value(), detail::quote(t.name), " has the shape ", shape_text(t.shape));
    t.bytes = *bytes;
    const bool too_large = filled > max_shard_bytes || t.bytes > max_shard_bytes - filled;
    const uint64_t in_header = most_header_bytes(t);
    if (i > begins.back() && (too_large || in_header > kLongestHeader - std::min(header, kLongestHeader))) {
      begins.push_back(i);
      filled = header = 0;
    }
    filled += t.bytes;
    header += in_header;
    layout.total_bytes += t.bytes;
  }
  const size_t count = begins.size();
  layout.shards.resize(count);
  for (size_t i = count; i-- > 0;) {  // from the end, so that the list never exists twice
    ShardLayout::Shard& shard = layout.shards[i];
    shard.file = count == 1 ? cat(stem, ".safetensors") : shard_name(stem, i + 1, count);
    if (i == 0) {
      shard.tensors = std::move(tensors);
      break;
    }
    const auto begin = tensors.begin() + static_cast<std::ptrdiff_t>(begins[i]);
    shard.tensors.assign(std::move_iterator(begin), std::move_iterator(tensors.end()));
    tensors.erase(begin, tensors.end());
  }
  return layout;
}

void write_shard_index(const std::filesystem::path& directory, const ShardLayout& layout, std::string_view stem) {
  if (layout.shards.size() < 2) return;
  std::vector<std::pair<std::string_view, const std::string*>> map;
  for (const auto& shard : layout.shards) {
    for (const auto& t : shard.tensors) map.emplace_back(t.name, &shard.file);
  }
  std::ranges::sort(map, {}, [](const auto& entry) { return entry.first; });
  // As Json::dump(2) lays it out; of a large model neither a tree of it nor its text need be held.
  PendingFile file(directory / cat(stem, ".safetensors.index.json"));
  std::string text =
      cat("{\n  \"metadata\": {\n    \"total_size\": ", layout.total_bytes, "\n  },\n  \"weight_map\": {");
  const auto write = [&] {
    file.append(std::as_bytes(std::span(text)));
    text.clear();
  };
  std::string_view separator = "\n    ";
  for (const auto& [tensor, shard] : map) {
    text += separator;
    append_json_text(text, tensor);
    text += ": ";
    append_json_text(text, *shard);
    separator = ",\n    ";
    write();
  }
  text += "\n  }\n}\n";
  write();
  file.settle();
  file.rename();
}

}  // namespace coppice::io
