#pragma once

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace coppice {

/// A JSON value that keeps what a configuration file holds: key order, the text of every non-integer number
/// (1e-05 stays 1e-05), bare NaN and Infinity as Python writes them.
class Json {
 public:
  enum class Kind { kNull, kBool, kInt, kFloat, kString, kArray, kObject };
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;

  Json() = default;  // null
  Json(bool value);
  Json(int64_t value);
  Json(uint64_t value);
  template <std::integral T>  // the other widths
    requires(!std::same_as<T, bool> && !std::same_as<T, char>)
  Json(T value) : Json(static_cast<std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>(value)) {}
  Json(double value);  // written in the shortest form that reads back equal
  Json(const char* value) : Json(std::string(value)) {}
  Json(std::string value);
  Json(std::string_view value) : Json(std::string(value)) {}
  static Json array(Array items = {});
  static Json object(Object members = {});
  template <class Range>
  static Json array_of(const Range& values) {
    Array items;
    for (const auto& v : values) items.emplace_back(v);
    return array(std::move(items));
  }

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::kNull; }
  bool is_number() const { return kind_ == Kind::kInt || kind_ == Kind::kFloat; }
  bool is_object() const { return kind_ == Kind::kObject; }
  bool is_array() const { return kind_ == Kind::kArray; }
  bool is_string() const { return kind_ == Kind::kString; }

  // Reading. Throws Error{kFormat}: what was wanted, what was found.
  bool as_bool() const;
  int64_t as_int() const;  // also a float without fraction
  double as_double() const;
  const std::string& as_string() const;
  const Array& items() const;
  const Object& members() const;

  /// The member, or nullptr if absent (or this is no object).
  const Json* find(std::string_view key) const;
  Json* find(std::string_view key);
  /// The member. Throws Error{kFormat} naming the key if absent.
  const Json& at(std::string_view key) const;
  /// The member, created as null at the end if absent; makes an object of a null.
  Json& operator[](std::string_view key);
  /// Appends to an array (makes an array of a null).
  void push_back(Json value);
  /// Removes the member; true if there was one.
  bool erase(std::string_view key);

  /// Same kind and value, members in the same order; floats are equal by text or by value (so NaN equals NaN).
  bool operator==(const Json& other) const;

  /// `indent` < 0: one line; else that many spaces a level, as Python's json.dumps(indent=...) lays out.
  std::string dump(int indent = -1) const;

  /// Throws   Error{kFormat} with `source`, line and column: syntax, duplicate key, nesting over 64, invalid UTF-8.
  static Json parse(std::string_view text, std::string_view source);
  /// Throws   Error{kNotFound}, Error{kIo}, Error{kFormat}; files over `max_bytes` are Error{kFormat}.
  static Json read(const std::filesystem::path& path, uint64_t max_bytes = 256u << 20);

 private:
  friend class JsonBuilder;  // json.cpp: fills values as the parser meets them
  void write(std::string& out, int indent, int level) const;

  Kind kind_ = Kind::kNull;
  bool bool_ = false;
  int64_t int_ = 0;  // kInt (uint64 above the int64 range is kept as kFloat text)
  double float_ = 0;
  std::string text_;  // kString: the value; kFloat: as found
  Array array_;
  Object object_;
};

}  // namespace coppice
