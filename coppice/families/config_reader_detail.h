#pragma once

// Typed access to the keys of a config.json, every error naming file, key, what was found and what was wanted.

#include <cstdint>
#include <string>
#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/text.h"

namespace coppice::families::detail {

/// The value at `path`, whose dots lead into objects ("ffn_config.moe_top_k"); nullptr if absent.
const Json* find_path(const Json& json, std::string_view path);
Json* find_path(Json& json, std::string_view path);

/// One object of a configuration. A null counts as absent.
class ConfigReader {
 public:
  ConfigReader(const Json& json, std::string_view source) : json_(json), source_(source) {}

  const Json* find(std::string_view key) const {
    const Json* value = find_path(json_, key);
    return value != nullptr && !value->is_null() ? value : nullptr;
  }
  const Json* find_even_null(std::string_view key) const { return find_path(json_, key); }
  const Json& at(std::string_view key) const {
    if (const Json* value = find(key)) return *value;
    throw Error(ErrorCode::kFormat,
                cat(source_, ": '", key, "' is missing (use the config.json that belongs to the weights)"));
  }

  int64_t whole(std::string_view key, int64_t low, int64_t high) const { return whole_of(key, at(key), low, high); }
  int64_t whole_or(std::string_view key, int64_t fallback, int64_t low, int64_t high) const {
    const Json* value = find(key);
    return value == nullptr ? fallback : whole_of(key, *value, low, high);
  }
  double number_or(std::string_view key, double fallback, double low, double high) const;
  bool flag_or(std::string_view key, bool fallback) const;
  std::string text_or(std::string_view key, std::string_view fallback) const;

  std::string_view source() const { return source_; }
  [[noreturn]] void refuse(std::string_view key, std::string_view wanted) const;

 private:
  int64_t whole_of(std::string_view key, const Json& value, int64_t low, int64_t high) const;

  const Json& json_;
  std::string_view source_;
};

}  // namespace coppice::families::detail
