#pragma once

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace coppice {

/// Limits on the size of a document.
struct JsonLimits {
  uint64_t bytes = uint64_t{256} << 20;
  uint64_t values = 4'000'000;  ///< numbers, texts, arrays and objects; each takes memory, however short its text is
};

/// A JSON value that keeps what a configuration file holds: key order, the text of every non-integer number
/// (1e-05 stays 1e-05), bare NaN and Infinity as Python writes them.
///
/// Memory   16 bytes, and one heap block for a text, an array or an object. A document takes at most about twenty times
///          the size of its text.
class Json {
 public:
  enum class Kind : uint8_t { kNull, kBool, kInt, kFloat, kString, kArray, kObject };
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
  Json(std::string value);
  template <class Text>  // literals, views, names of tensors
    requires(std::convertible_to<const Text&, std::string_view> && !std::same_as<Text, std::string>)
  Json(const Text& value) : Json(std::string(std::string_view(value))) {}
  Json(const Json& other);
  Json(Json&& other) noexcept;
  Json& operator=(Json other) noexcept;
  ~Json() { clear(); }
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

  // Reading. Throws Error{kFormat}, which says what was wanted and what was found. JsonReader also says where in which
  // file.
  bool as_bool() const;
  int64_t as_int() const;  // also a float without fraction
  double as_double() const;
  const std::string& as_string() const;
  const Array& items() const;
  const Object& members() const;

  /// The member, or nullptr if absent (or if this is not an object).
  const Json* find(std::string_view key) const;
  Json* find(std::string_view key);
  /// The member. Throws Error{kFormat} naming the key if absent.
  const Json& at(std::string_view key) const;
  /// The value of members()[index], for changing it in place without the linear search of find().
  Json& value_at(size_t index);
  /// The member, created as null at the end if absent; makes an object of a null.
  Json& operator[](std::string_view key);
  /// Appends to an array (makes an array of a null).
  void push_back(Json value);
  /// Removes the member; true if there was one.
  bool erase(std::string_view key);

  /// Same kind and value, members in the same order; floats are equal by text or by value (so NaN equals NaN).
  bool operator==(const Json& other) const;

  /// `indent` < 0: one line; else that many spaces per level, laid out as by Python's json.dumps(indent=...).
  std::string dump(int indent = -1) const;

  /// Throws   Error{kFormat} with `source`, line and column: syntax, duplicate key, nesting over 64, invalid UTF-8, a
  ///          number past the range of a double, more values than `limits` has.
  static Json parse(std::string_view text, std::string_view source, const JsonLimits& limits = {});
  /// Throws   Error{kNotFound}, Error{kIo}, Error{kFormat}.
  static Json read(const std::filesystem::path& path, const JsonLimits& limits = {});

  /// Passes the members of an object to `take` one by one as they are parsed. The object is the document itself, or its
  /// member `inside` if that name is given; other members of the document are skipped. Returns false if there is no
  /// such object. Keys that appear twice are passed twice.
  ///
  /// Memory   one member, which may have at most `values_of_member` values.
  /// Throws   as `parse`.
  static bool each_member(std::string_view text, std::string_view source, std::string_view inside,
                          uint64_t values_of_member,
                          const std::function<void(std::string_view key, const Json& value)>& take);

 private:
  friend class JsonBuilder;  // json_parse.cpp: fills values as the parser meets them
  static Json number(std::string text);
  void clear() noexcept;
  void write(std::string& out, int indent, int level) const;

  // kString: the value; kFloat: the number as found. An empty text, array or object is a null pointer.
  union Value {
    int64_t integer = 0;
    bool boolean;
    std::string* text;
    Array* array;
    Object* object;
  };
  Kind kind_ = Kind::kNull;
  Value value_;
};

/// Appends `text` as a quoted JSON string.
void append_json_text(std::string& out, std::string_view text);

}  // namespace coppice
