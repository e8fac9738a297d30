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

std::optional<int64_t> layer_number(std::string_view text) {
  int64_t layer = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
  const bool is_whole = error == std::errc() && end == text.data() + text.size();
  if (!is_whole || layer < 0 || layer >= families::kMaxLayers || std::to_string(layer) != text) return std::nullopt;
  return layer;
}

int64_t layer_from_key(std::string_view key, std::string_view path) {
  if (const auto layer = layer_number(key)) return *layer;
  throw Error(ErrorCode::kFormat,
              cat(path, ": '", key, "' is not a layer number (correct the file, or make it again)"));
}

}  // namespace coppice::methods
