#include "coppice/base/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/text.h"

namespace coppice {
namespace {

static_assert(sizeof(Json) == 16, "arrays of numbers are as large as promised");

std::string_view kind_name(Json::Kind kind) {
  switch (kind) {
    case Json::Kind::kNull: return "null";
    case Json::Kind::kBool: return "true or false";
    case Json::Kind::kInt: return "an integer";
    case Json::Kind::kFloat: return "a number";
    case Json::Kind::kString: return "a text";
    case Json::Kind::kArray: return "an array";
    case Json::Kind::kObject: break;
  }
  return "an object";
}

[[noreturn]] void wrong_kind(const Json& found, std::string_view wanted) {
  throw Error(ErrorCode::kFormat, cat("found ", kind_name(found.kind()), "; wanted ", wanted));
}

template <class Held>
const Held& held(const Held* pointer) {
  static const Held kEmpty;
  return pointer == nullptr ? kEmpty : *pointer;
}

template <class Held>
Held& own(Held*& pointer) {
  if (pointer == nullptr) pointer = new Held;
  return *pointer;
}

template <class Held>
Held* owned(Held value) {
  return value.empty() ? nullptr : new Held(std::move(value));
}

template <class Held>
Held* copied(const Held* pointer) {
  return pointer == nullptr ? nullptr : new Held(*pointer);
}

double double_of(std::string_view text) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (text == "NaN") return std::nan("");
  if (text == "Infinity") return kInfinity;
  if (text == "-Infinity") return -kInfinity;
  double value = 0;  // the result for a number too small for a double; the parser refuses those that are too large
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

}  // namespace

Json::Json(bool value) : kind_(Kind::kBool) { value_.boolean = value; }
Json::Json(int64_t value) : kind_(Kind::kInt) { value_.integer = value; }
Json::Json(uint64_t value) {
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    *this = number(std::to_string(value));
    return;
  }
  kind_ = Kind::kInt;
  value_.integer = static_cast<int64_t>(value);
}
Json::Json(double value) {
  if (std::isnan(value)) {
    *this = number("NaN");
  } else if (std::isinf(value)) {
    *this = number(value < 0 ? "-Infinity" : "Infinity");
  } else {
    std::string text = cat(value);
    if (text.find_first_of(".e") == std::string::npos) text += ".0";
    *this = number(std::move(text));
  }
}
Json::Json(std::string value) : kind_(Kind::kString) { value_.text = owned(std::move(value)); }

Json::Json(const Json& other) : kind_(other.kind_) {
  switch (kind_) {
    case Kind::kNull:
    case Kind::kBool:
    case Kind::kInt: value_ = other.value_; return;
    case Kind::kFloat:
    case Kind::kString: value_.text = copied(other.value_.text); return;
    case Kind::kArray: value_.array = copied(other.value_.array); return;
    case Kind::kObject: value_.object = copied(other.value_.object); return;
  }
}

Json::Json(Json&& other) noexcept
    : kind_(std::exchange(other.kind_, Kind::kNull)), value_(std::exchange(other.value_, Value{})) {}

Json& Json::operator=(Json other) noexcept {
  std::swap(kind_, other.kind_);
  std::swap(value_, other.value_);
  return *this;
}

void Json::clear() noexcept {
  switch (kind_) {
    case Kind::kNull:
    case Kind::kBool:
    case Kind::kInt: break;
    case Kind::kFloat:
    case Kind::kString: delete value_.text; break;
    case Kind::kArray: delete value_.array; break;
    case Kind::kObject: delete value_.object; break;
  }
  kind_ = Kind::kNull;
}

Json Json::number(std::string text) {
  Json out;
  out.value_.text = new std::string(std::move(text));
  out.kind_ = Kind::kFloat;
  return out;
}

Json Json::array(Array items) {
  Json out;
  out.value_.array = owned(std::move(items));
  out.kind_ = Kind::kArray;
  return out;
}

Json Json::object(Object members) {
  Json out;
  out.value_.object = owned(std::move(members));
  out.kind_ = Kind::kObject;
  return out;
}

bool Json::as_bool() const {
  if (kind_ != Kind::kBool) wrong_kind(*this, "true or false");
  return value_.boolean;
}

int64_t Json::as_int() const {
  if (kind_ == Kind::kInt) return value_.integer;
  if (kind_ != Kind::kFloat) wrong_kind(*this, "an integer");
  const double value = double_of(*value_.text);
  if (!(std::fabs(value) < 0x1p63) || std::trunc(value) != value) {
    throw Error(ErrorCode::kFormat, cat("found ", *value_.text, "; wanted an integer of 64 bits"));
  }
  return static_cast<int64_t>(value);
}

double Json::as_double() const {
  if (kind_ == Kind::kInt) return static_cast<double>(value_.integer);
  if (kind_ != Kind::kFloat) wrong_kind(*this, "a number");
  return double_of(*value_.text);
}

const std::string& Json::as_string() const {
  if (kind_ != Kind::kString) wrong_kind(*this, "a text");
  return held(value_.text);
}

const Json::Array& Json::items() const {
  if (kind_ != Kind::kArray) wrong_kind(*this, "an array");
  return held(value_.array);
}

const Json::Object& Json::members() const {
  if (kind_ != Kind::kObject) wrong_kind(*this, "an object");
  return held(value_.object);
}

const Json* Json::find(std::string_view key) const {
  if (kind_ != Kind::kObject) return nullptr;
  const Object& all = held(value_.object);
  const auto it = std::find_if(all.begin(), all.end(), [&](const Member& m) { return m.first == key; });
  return it == all.end() ? nullptr : &it->second;
}

Json* Json::find(std::string_view key) { return const_cast<Json*>(std::as_const(*this).find(key)); }

const Json& Json::at(std::string_view key) const {
  if (kind_ != Kind::kObject) wrong_kind(*this, cat("an object with the key '", key, "'"));
  const Json* member = find(key);
  if (member == nullptr) throw Error(ErrorCode::kFormat, cat("the key '", key, "' is missing"));
  return *member;
}

Json& Json::value_at(size_t index) {
  if (kind_ != Kind::kObject) wrong_kind(*this, "an object");
  return own(value_.object).at(index).second;
}

Json& Json::operator[](std::string_view key) {
  if (kind_ == Kind::kNull) *this = object();
  if (kind_ != Kind::kObject) wrong_kind(*this, cat("an object to set '", key, "' in"));
  Json* member = find(key);
  return member != nullptr ? *member : own(value_.object).emplace_back(std::string(key), Json()).second;
}

void Json::push_back(Json value) {
  if (kind_ == Kind::kNull) *this = array();
  if (kind_ != Kind::kArray) wrong_kind(*this, "an array to append to");
  own(value_.array).push_back(std::move(value));
}

bool Json::erase(std::string_view key) {
  if (kind_ != Kind::kObject || value_.object == nullptr) return false;
  return std::erase_if(*value_.object, [&](const Member& m) { return m.first == key; }) > 0;
}

bool Json::operator==(const Json& other) const {
  if (kind_ != other.kind_) return false;
  switch (kind_) {
    case Kind::kNull: return true;
    case Kind::kBool: return value_.boolean == other.value_.boolean;
    case Kind::kInt: return value_.integer == other.value_.integer;
    case Kind::kFloat: return *value_.text == *other.value_.text || as_double() == other.as_double();
    case Kind::kString: return as_string() == other.as_string();
    case Kind::kArray: return items() == other.items();
    case Kind::kObject: break;
  }
  return members() == other.members();
}

Json Json::read(const std::filesystem::path& path, const JsonLimits& limits) {
  return parse(read_file(path, limits.bytes), path.string(), limits);
}

}  // namespace coppice
