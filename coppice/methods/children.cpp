#include "coppice/methods/children.h"

#include <charconv>
#include <string>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"

namespace coppice::methods {

std::vector<uint32_t> LayerPlan::siblings(int64_t experts_before) const {
  std::vector<uint32_t> counts(static_cast<size_t>(experts_before), 0);
  for (const Child& child : children) {
    COPPICE_CHECK(child.parent < counts.size());
    ++counts[child.parent];
  }
  return counts;
}

int64_t layer_from_key(std::string_view key, std::string_view path) {
  int64_t layer = -1;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), layer);
  const bool whole = error == std::errc() && end == key.data() + key.size();
  if (!whole || layer < 0 || layer >= families::kMaxLayers || std::to_string(layer) != key) {
    throw Error(ErrorCode::kFormat, cat(path, ": '", key, "' is no layer number (correct the file, or make it again)"));
  }
  return layer;
}

}  // namespace coppice::methods
