#include <algorithm>
#include <map>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/text.h"
#include "coppice/io/paths_detail.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/shard_index_detail.h"

namespace coppice::io::detail {
namespace {

using Located = std::pair<TensorName, uint32_t>;

std::string_view name_of(const Located& located) { return located.first; }

}  // namespace

bool WeightMap::contains(std::string_view tensor) const {
  return std::ranges::binary_search(tensors, tensor, {}, name_of);
}

WeightMap parse_shard_index(std::string_view index, std::string_view source) {
  constexpr uint64_t kMostValues = 8;  // per tensor: the file's name
  WeightMap out;
  std::map<std::string, uint32_t, std::less<>> numbers;
  const auto take = [&](std::string_view tensor, const Json& file) {
    if (!file.is_string()) {
      throw Error(ErrorCode::kFormat,
                  cat(source, ": the file of ", quote(tensor), " is not text; wanted a shard's name"));
    }
    auto number = numbers.find(file.as_string());
    if (number == numbers.end()) {
      check_relative(source, file.as_string());
      number = numbers.emplace(file.as_string(), static_cast<uint32_t>(out.files.size())).first;
      out.files.push_back(file.as_string());
    }
    out.tensors.emplace_back(tensor, number->second);
  };
  if (!Json::each_member(index, source, "weight_map", kMostValues, take)) {
    throw Error(
        ErrorCode::kFormat,
        cat(source, ": has no weight_map; wanted an object of tensor names and shard files (download it again)"));
  }
  std::ranges::sort(out.tensors, {}, name_of);
  const auto twice = std::ranges::adjacent_find(out.tensors, {}, name_of);
  if (twice != out.tensors.end()) {
    throw Error(ErrorCode::kFormat, cat(source, ": the key ", quote(name_of(*twice)),
                                        " appears twice in weight_map, so its file is ambiguous (download it again)"));
  }
  return out;
}

}  // namespace coppice::io::detail
