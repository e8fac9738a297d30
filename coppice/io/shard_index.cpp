#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/paths_detail.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/shard_index_detail.h"

namespace coppice::io::detail {

WeightMap parse_shard_index(const Json& index, std::string_view source) {
  const Json* map = index.find("weight_map");
  if (!map || !map->is_object()) {
    throw Error(ErrorCode::kFormat,
                cat(source, ": no weight_map; wanted an object of tensor names and shard files (download it again)"));
  }
  WeightMap out;
  for (const auto& [tensor, file] : map->members()) {
    if (!file.is_string()) {
      throw Error(ErrorCode::kFormat,
                  cat(source, ": the file of ", quote(tensor), " is no text; wanted a shard's name"));
    }
    check_relative(source, file.as_string());
    out.emplace(tensor, file.as_string());
  }
  return out;
}

}  // namespace coppice::io::detail
