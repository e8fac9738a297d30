#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/safetensors_header_detail.h"

namespace coppice::io::detail {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

constexpr size_t kLengthBytes = 8;
constexpr size_t kProblemsShown = 8;

/// JSON values of one tensor or of the metadata: shapes have a few dimensions, metadata a few keys.
constexpr uint64_t kMostValues = 1 << 16;

/// Problems of a header: the first few, and the number of all.
class Problems {
 public:
  void add(std::string text) {
    if (++count_ <= kProblemsShown) first_.push_back(std::move(text));
  }
  bool empty() const { return count_ == 0; }
  [[noreturn]] void fail(std::string_view source, std::string_view advice) const {
    const auto more = count_ > first_.size() ? cat(", ... (", count_ - first_.size(), " more)") : std::string();
    throw Error(ErrorCode::kFormat, cat(source, ": ", join(first_), more, advice));
  }

 private:
  std::vector<std::string> first_;
  size_t count_ = 0;
};

[[noreturn]] void fail(std::string_view source, std::string problem, std::string_view advice) {
  Problems problems;
  problems.add(std::move(problem));
  problems.fail(source, advice);
}

// An integer of 0 or more that fits into int64.
bool is_size(const Json& value) { return value.kind() == Json::Kind::kInt && value.as_int() >= 0; }

std::string_view header_text(std::span<const std::byte> file, std::string_view source) {
  if (file.size() < kLengthBytes) {
    fail(source, cat(file.size(), " bytes long"), "; wanted at least 8 bytes (download it again)");
  }
  const auto* text = reinterpret_cast<const char*>(file.data());
  uint64_t length;
  std::memcpy(&length, text, kLengthBytes);
  if (std::string_view(text, kLengthBytes) == "version ") {
    fail(source, "a Git LFS pointer", "; wanted the weights themselves (run `git lfs pull`)");
  }
  if (length > kMaxHeaderBytes) {
    fail(source, cat("a header of ", length, " bytes"),
         cat("; wanted at most ", kMaxHeaderBytes, " (this is not a safetensors file, or it is damaged)"));
  }
  if (length > file.size() - kLengthBytes) {
    fail(source, cat("the header ends at byte ", kLengthBytes + length, " of ", file.size()),
         "; the file is incomplete (download it again)");
  }
  const std::string_view header(text + kLengthBytes, length);
  if (header.empty() || header.front() != '{') {
    fail(source, "the header is not a JSON object", "; wanted '{' at byte 8 (this is not a safetensors file)");
  }
  return header;
}

// Reads one entry of the header; adds what is wrong with it to `problems`.
void read_tensor(std::string_view name, const Json& entry, std::vector<TensorInfo>& tensors, Problems& problems) {
  const auto reject = [&](const auto&... what) { problems.add(cat(quote(name), " ", what...)); };
  if (!entry.is_object()) return reject("is not an object with dtype, shape and data_offsets");
  const Json *dtype = nullptr, *shape = nullptr, *offsets = nullptr;
  for (const auto& [key, value] : entry.members()) {
    if (key == "dtype")
      dtype = &value;
    else if (key == "shape")
      shape = &value;
    else if (key == "data_offsets")
      offsets = &value;
    else
      return reject("has an unknown key ", quote(key));
  }
  if (!dtype || !shape || !offsets) {
    return reject("has no ", !dtype ? "dtype" : !shape ? "shape" : "data_offsets");
  }
  TensorInfo tensor;
  tensor.name = name;
  if (!dtype->is_string()) return reject("has a dtype that is not text");
  if (!parse_dtype(dtype->as_string(), tensor.dtype)) {
    return reject("has the unknown dtype ", quote(dtype->as_string()));
  }
  if (!shape->is_array() || !std::ranges::all_of(shape->items(), is_size)) {
    return reject("has a shape that is not a list of sizes of 0 or more");
  }
  std::vector<int64_t> sizes;
  for (const auto& size : shape->items()) sizes.push_back(size.as_int());
  tensor.shape = sizes;
  if (!offsets->is_array() || offsets->items().size() != 2 || !std::ranges::all_of(offsets->items(), is_size)) {
    return reject("has data_offsets that are not two numbers of 0 or more");
  }
  const auto begin = static_cast<uint64_t>(offsets->items()[0].as_int());
  const auto end = static_cast<uint64_t>(offsets->items()[1].as_int());
  if (begin > end) return reject("starts at byte ", begin, ", after its end at byte ", end);
  const auto wanted = byte_count(tensor.dtype, tensor.shape);
  const auto described = cat(dtype_name(tensor.dtype), " ", shape_text(tensor.shape));
  if (!wanted) return reject("has a byte count that overflows or is not whole (", described, ")");
  if (*wanted != end - begin) return reject("has ", end - begin, " bytes, but ", described, " requires ", *wanted);
  tensor.offset = begin;
  tensor.bytes = *wanted;
  tensors.push_back(std::move(tensor));
}

void read_metadata(const Json& entry, std::map<std::string, std::string>& metadata, Problems& problems) {
  if (!entry.is_object()) {
    problems.add("__metadata__ is not an object");
    return;
  }
  for (const auto& [key, value] : entry.members()) {
    if (value.is_string())
      metadata.emplace(key, value.as_string());
    else
      problems.add(cat("the value of ", quote(key), " in __metadata__ is not text"));
  }
}

// The tensors must fill the data section: each starts where the one before it ends, the last ends with the file.
void check_offsets(const std::vector<TensorInfo>& tensors, uint64_t data_bytes, std::string_view source) {
  Problems problems;
  for (const auto& t : tensors) {
    if (t.offset + t.bytes > data_bytes) {
      problems.add(cat(quote(t.name), " ends at byte ", t.offset + t.bytes, " of ", data_bytes));
    }
  }
  if (!problems.empty()) problems.fail(source, "; the file is incomplete (download it again)");

  uint64_t end = 0;
  const TensorInfo* before = nullptr;
  for (const auto& t : tensors) {
    if (t.offset < end) {
      problems.add(cat(quote(t.name), " starts at byte ", t.offset, " and overlaps ", quote(before->name),
                       ", which ends at byte ", end));
    } else if (t.offset > end) {
      problems.add(cat(quote(t.name), " starts at byte ", t.offset, " and leaves a gap after byte ", end));
    }
    if (t.offset + t.bytes >= end) {
      end = t.offset + t.bytes;
      before = &t;
    }
  }
  if (!problems.empty()) {
    problems.fail(
        source,
        "; wanted each tensor to start where the last one ends (write the file again with the safetensors library)");
  }
  if (end != data_bytes) {
    fail(source,
         cat(data_bytes - end, " bytes belong to no tensor after ", before ? quote(before->name) : "the header"),
         "; wanted the file to end there (download it again)");
  }
}

std::vector<uint32_t> sorted_by_name(const std::vector<TensorInfo>& tensors, std::string_view source) {
  const auto name_of = [&](uint32_t i) { return tensors[i].name.view(); };
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, {}, name_of);
  Problems problems;
  for (size_t i = 1; i < order.size(); ++i) {
    if (name_of(order[i - 1]) == name_of(order[i]))
      problems.add(cat("the key ", quote(name_of(order[i])), " appears twice"));
  }
  if (!problems.empty()) problems.fail(source, ", so the header is ambiguous (the file is damaged)");
  return order;
}

}  // namespace

std::optional<uint64_t> byte_count(Dtype dtype, std::span<const int64_t> shape) {
  // Multiplies only sizes that are not zero, so that code that computes strides cannot overflow either.
  const auto bits = static_cast<uint64_t>(dtype_bits(dtype));
  uint64_t product = bits;
  bool empty = false;
  for (const int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size == 0) {
      empty = true;
      continue;
    }
    if (product > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / static_cast<uint64_t>(size)) {
      return std::nullopt;
    }
    product *= static_cast<uint64_t>(size);
  }
  if (empty) return 0;
  if (product % 8 != 0) return std::nullopt;
  return product / 8;
}

Header parse_header(std::span<const std::byte> file, std::string_view source) {
  const auto text = header_text(file, source);
  Header header;
  header.data_start = kLengthBytes + text.size();
  Problems problems;
  bool has_metadata = false;
  Json::each_member(text, source, {}, kMostValues, [&](std::string_view name, const Json& entry) {
    if (name != "__metadata__") {
      read_tensor(name, entry, header.tensors, problems);
    } else if (std::exchange(has_metadata, true)) {
      problems.add("__metadata__ appears twice");
    } else {
      read_metadata(entry, header.metadata, problems);
    }
  });
  header.tensors.shrink_to_fit();
  if (!problems.empty()) problems.fail(source, " (the file is damaged or was not written by the safetensors library)");
  // Tensors without bytes come before the tensor that starts at the same offset.
  std::ranges::sort(header.tensors, {},
                    [](const TensorInfo& t) { return std::tuple(t.offset, t.bytes, t.name.view()); });
  header.by_name = sorted_by_name(header.tensors, source);
  check_offsets(header.tensors, file.size() - header.data_start, source);
  return header;
}

void each_json_piece(const std::vector<TensorInfo>& tensors, const std::map<std::string, std::string>& metadata,
                     size_t piece_bytes, const std::function<void(std::string_view)>& take) {
  std::string text = "{";
  if (!metadata.empty()) {
    Json::Object members;
    for (const auto& [key, value] : metadata) members.emplace_back(key, Json(value));
    text += cat("\"__metadata__\":", Json::object(std::move(members)).dump());
  }
  for (const auto& t : tensors) {
    if (&t != tensors.data() || !metadata.empty()) text += ',';
    append_json_text(text, t.name);
    text.append(":{\"dtype\":\"").append(dtype_name(t.dtype)).append("\",\"shape\":[");
    for (size_t i = 0; i < t.shape.size(); ++i) text += cat(i > 0 ? "," : "", t.shape[i]);
    text += cat("],\"data_offsets\":[", t.offset, ",", t.offset + t.bytes, "]}");
    size_t taken = 0;
    for (; text.size() - taken >= piece_bytes; taken += piece_bytes)
      take(std::string_view(text).substr(taken, piece_bytes));
    text.erase(0, taken);
  }
  text += '}';
  for (size_t taken = 0; taken < text.size(); taken += piece_bytes)
    take(std::string_view(text).substr(taken, piece_bytes));
}

uint64_t header_bytes(uint64_t json_bytes) {
  return (kLengthBytes + json_bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
}

}  // namespace coppice::io::detail
