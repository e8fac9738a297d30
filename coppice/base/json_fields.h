#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "coppice/base/json.h"

namespace coppice {

/// Reads the members of a JSON file of ours; every error names the file and the path of keys.
class JsonFields {
 public:
  JsonFields(const Json& json, std::string path);  // Throws Error{kFormat} if `json` is not an object

  JsonFields object(std::string_view key) const;
  const Json& array(std::string_view key) const;
  std::string text(std::string_view key) const;
  bool boolean(std::string_view key) const;
  int64_t integer(std::string_view key, int64_t lo, int64_t hi) const;  ///< inclusive
  const Json& member(std::string_view key) const;
  bool has(std::string_view key) const { return json_->find(key) != nullptr; }
  const Json::Object& members() const { return json_->members(); }

  /// Throws   Error{kFormat} for a member that is not one of `keys`, with the nearest key.
  void expect_only(std::initializer_list<std::string_view> keys) const;

  std::string path_of(std::string_view key) const;
  [[noreturn]] void fail(std::string_view key, std::string_view problem) const;

 private:
  const Json* json_;
  std::string path_;
};

/// A value as an integer in [lo, hi]. Throws Error{kFormat} starting with `path`.
int64_t json_integer(const Json& json, std::string_view path, int64_t lo, int64_t hi);

/// A seed as a JSON value (text from 2^63 on, where JSON and TOML integers end), and the seed read back from the member
/// `seed`.
Json seed_json(uint64_t seed);
uint64_t read_seed(const JsonFields& fields);  // Throws Error{kFormat}

}  // namespace coppice
