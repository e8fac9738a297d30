#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coppice/base/json.h"

namespace coppice {

/// A value of a document that knows its place in it: errors begin with the document's source and the path of keys,
/// "metrics.jsonl:17: experts[0]: found a text; wanted an integer".
///
/// Memory   two pointers; values read from one document share it.
class JsonReader {
 public:
  /// The whole of a document. `source` names it: a file, or file and line.
  JsonReader(Json document, std::string source);
  /// Throws   what Json::parse and Json::read throw.
  static JsonReader parse(std::string_view text, std::string source, const JsonLimits& limits = {});
  static JsonReader read(const std::filesystem::path& path, const JsonLimits& limits = {});

  const Json& json() const { return *value_; }
  /// A reader of `value`, which must be part of the same document.
  JsonReader of(const Json& value) const { return {document_, value}; }

  // As the functions of Json with these names. All throw Error{kFormat}.
  bool as_bool() const;
  int64_t as_int() const;
  double as_double() const;
  const std::string& as_string() const;
  std::vector<JsonReader> items() const;
  std::vector<std::pair<std::string_view, JsonReader>> members() const;
  JsonReader at(std::string_view key) const;
  std::optional<JsonReader> find(std::string_view key) const;  ///< also none if this is not an object
  /// The value as an integer in [lo, hi].
  int64_t integer(int64_t lo, int64_t hi) const;

  /// Throws   Error{kFormat}: source, path of keys, `problem`.
  [[noreturn]] void fail(std::string_view problem) const;

 private:
  struct Document;
  JsonReader(std::shared_ptr<const Document> document, const Json& value)
      : document_(std::move(document)), value_(&value) {}
  std::string place() const;  // searched for only when there is an error
  template <class Read>
  decltype(auto) checked(const Read& read) const;

  std::shared_ptr<const Document> document_;
  const Json* value_;  // of the document
};

}  // namespace coppice
