#include "coppice/base/toml.h"

#include <toml++/toml.h>

#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/text.h"

namespace coppice {
namespace {

constexpr uint64_t kMaxBytes = uint64_t{64} << 20;

std::string place(std::string_view path, const toml::source_region& region) {
  return cat(path, ": line ", region.begin.line, ", column ", region.begin.column);
}

// Nesting is bounded by the parser (256 levels).
Json to_json(const toml::node& node, std::string_view path) {
  if (const auto* table = node.as_table()) {
    Json out = Json::object();
    for (const auto& [key, value] : *table) out[key.str()] = to_json(value, path);
    return out;
  }
  if (const auto* array = node.as_array()) {
    Json out = Json::array();
    for (const auto& value : *array) out.push_back(to_json(value, path));
    return out;
  }
  if (const auto* text = node.as_string()) return Json(text->get());
  if (const auto* integer = node.as_integer()) return Json(integer->get());
  if (const auto* number = node.as_floating_point()) return Json(number->get());
  if (const auto* truth = node.as_boolean()) return Json(truth->get());
  throw Error(ErrorCode::kFormat,
              cat(place(path, node.source()), ": is a date or time; coppice has no option of that type (quote it)"));
}

}  // namespace

Json parse_toml(std::string_view text, std::string_view source) {
  try {
    return to_json(toml::parse(text, std::string(source)), source);
  } catch (const toml::parse_error& e) {
    throw Error(ErrorCode::kFormat, cat(place(source, e.source()), ": is not valid TOML: ", e.description()));
  }
}

Json read_toml(const std::filesystem::path& path) { return parse_toml(read_file(path, kMaxBytes), path.string()); }

}  // namespace coppice
