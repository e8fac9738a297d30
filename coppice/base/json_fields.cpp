#include "coppice/base/json_fields.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice {
namespace {

[[noreturn]] void fail_at(std::string_view path, std::string_view problem) {
  throw Error(ErrorCode::kFormat, cat(path, ": ", problem, " (correct the file, or make it again)"));
}

}  // namespace

JsonFields::JsonFields(const Json& json, std::string path) : json_(&json), path_(std::move(path)) {
  if (!json.is_object()) fail_at(path_, "is not a JSON object");
}

void JsonFields::expect_only(std::initializer_list<std::string_view> keys) const {
  const std::vector<std::string> known(keys.begin(), keys.end());
  for (const auto& [key, unused] : members()) {
    if (std::ranges::find(known, key) == known.end())
      fail(key, cat("is not a key of this file", suggestion(key, known)));
  }
}

std::string JsonFields::path_of(std::string_view key) const { return cat(path_, ": '", key, "'"); }

void JsonFields::fail(std::string_view key, std::string_view problem) const { fail_at(path_of(key), problem); }

const Json& JsonFields::member(std::string_view key) const {
  const Json* found = json_->find(key);
  if (found == nullptr) fail(key, "missing");
  return *found;
}

JsonFields JsonFields::object(std::string_view key) const { return {member(key), path_of(key)}; }

const Json& JsonFields::array(std::string_view key) const {
  const Json& found = member(key);
  if (!found.is_array()) fail(key, "is not an array");
  return found;
}

std::string JsonFields::text(std::string_view key) const {
  const Json& found = member(key);
  if (!found.is_string()) fail(key, "is not a string");
  return found.as_string();
}

bool JsonFields::boolean(std::string_view key) const {
  const Json& found = member(key);
  if (found.kind() != Json::Kind::kBool) fail(key, "is not true or false");
  return found.as_bool();
}

int64_t JsonFields::integer(std::string_view key, int64_t lo, int64_t hi) const {
  return json_integer(member(key), path_of(key), lo, hi);
}

int64_t json_integer(const Json& json, std::string_view path, int64_t lo, int64_t hi) {
  if (json.kind() != Json::Kind::kInt) fail_at(path, "is not an integer");
  const int64_t value = json.as_int();
  if (value < lo || value > hi) fail_at(path, cat("is ", value, ", not in [", lo, ", ", hi, "]"));
  return value;
}

Json seed_json(uint64_t seed) {
  if (seed <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Json(static_cast<int64_t>(seed));
  return Json(std::to_string(seed));
}

uint64_t read_seed(const JsonFields& fields) {
  if (!fields.member("seed").is_string()) {
    return static_cast<uint64_t>(fields.integer("seed", 0, std::numeric_limits<int64_t>::max()));
  }
  const std::string text = fields.text("seed");
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || end != text.data() + text.size()) fields.fail("seed", "is not an integer below 2^64");
  return seed;
}

}  // namespace coppice
