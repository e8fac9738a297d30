#include <algorithm>
#include <utility>

#include "coppice/families/config_reader_detail.h"

namespace coppice::families::detail {

const Json* find_path(const Json& json, std::string_view path) {
  const Json* at = &json;
  for (size_t begin = 0; at != nullptr;) {
    const size_t dot = path.find('.', begin);
    at = at->find(path.substr(begin, dot == std::string_view::npos ? dot : dot - begin));
    if (dot == std::string_view::npos) break;
    begin = dot + 1;
  }
  return at;
}

Json* find_path(Json& json, std::string_view path) { return const_cast<Json*>(find_path(std::as_const(json), path)); }

void ConfigReader::refuse(std::string_view key, std::string_view wanted) const {
  constexpr size_t kLongest = 60;
  const Json* value = find_even_null(key);
  std::string found = value == nullptr ? "absent" : value->dump();
  if (found.size() > kLongest) found = found.substr(0, kLongest) + "...";
  throw Error(ErrorCode::kFormat, cat(source_, ": '", key, "' is ", found, "; wanted ", wanted));
}

int64_t ConfigReader::whole_of(std::string_view key, const Json& value, int64_t low, int64_t high) const {
  const std::string wanted = cat("a whole number from ", low, " to ", high);
  if (value.kind() != Json::Kind::kInt) refuse(key, wanted);
  const int64_t number = value.as_int();
  if (number < low || number > high) refuse(key, wanted);
  return number;
}

double ConfigReader::number_or(std::string_view key, double fallback, double low, double high) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  const std::string wanted = cat("a number from ", low, " to ", high);
  if (!value->is_number()) refuse(key, wanted);
  const double number = value->as_double();
  if (!(number >= low && number <= high)) refuse(key, wanted);  // NaN too
  return number;
}

bool ConfigReader::flag_or(std::string_view key, bool fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (value->kind() != Json::Kind::kBool) refuse(key, "true or false");
  return value->as_bool();
}

std::string ConfigReader::text_or(std::string_view key, std::string_view fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) refuse(key, "a text");
  return value->as_string();
}

}  // namespace coppice::families::detail
