#include "coppice/base/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "coppice/base/error.h"
#include "coppice/base/file_detail.h"
#include "coppice/base/text.h"

namespace coppice {
namespace {

constexpr size_t kMaxDepth = 64;

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

/// The text with bare NaN, Infinity and -Infinity replaced by numbers of the same length.
struct Finite {
  std::string text;  // empty if there was nothing to replace
  struct Literal {
    size_t word;  // its place among the words of the text: numbers, true, false, null
    std::string_view spelling;
  };
  std::vector<Literal> literals;
};

Finite without_literals(std::string_view text) {
  Finite out;
  const auto in_word = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '+' || c == '-' ||
           c == '.';
  };
  size_t words = 0;
  for (size_t i = 0; i < text.size();) {
    if (text[i] == '"') {
      for (++i; i < text.size() && text[i] != '"'; ++i) {
        if (text[i] == '\\') ++i;
      }
      ++i;
      continue;
    }
    if (!in_word(text[i])) {
      ++i;
      continue;
    }
    const size_t begin = i;
    while (i < text.size() && in_word(text[i])) ++i;
    for (const std::string_view spelling : {"NaN", "Infinity", "-Infinity"}) {
      if (text.substr(begin, i - begin) != spelling) continue;
      if (out.text.empty()) out.text = text;
      const bool negative = spelling[0] == '-';
      const std::string number = cat(negative ? "-0." : "0.", std::string(spelling.size() - (negative ? 3 : 2), '0'));
      out.text.replace(begin, spelling.size(), number);
      out.literals.push_back({words, spelling});
    }
    ++words;
  }
  return out;
}

}  // namespace

/// Receives nlohmann's parsing events and builds the value.
class JsonBuilder {
 public:
  using Source = nlohmann::json;

  JsonBuilder(std::string_view text, std::string_view source, const std::vector<Finite::Literal>& literals)
      : input_(text), source_(source), literals_(literals) {}

  // The names are nlohmann's.
  bool null() { return put_word(Json()); }
  bool boolean(bool value) { return put_word(Json(value)); }
  bool number_integer(int64_t value) { return put_word(Json(value)); }
  bool number_unsigned(uint64_t value) { return put_word(Json(value)); }
  bool number_float(double value, const std::string& spelling) {
    Json out(value);
    out.text_ = spelling;
    if (next_literal_ < literals_.size() && literals_[next_literal_].word == words_) {
      out.text_ = literals_[next_literal_++].spelling;
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      out.float_ = out.text_ == "NaN" ? std::nan("") : out.text_[0] == '-' ? -kInfinity : kInfinity;
    }
    return put_word(std::move(out));
  }
  bool string(std::string& value) { return put(Json(std::move(value))); }
  bool binary(Source::binary_t&) { return false; }
  bool key(std::string& value) {
    open_.back()->object_.emplace_back(std::move(value), Json());
    return true;
  }
  bool start_object(size_t) { return open(Json::object()); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  bool end_object() {
    std::vector<std::string_view> keys;
    for (const auto& member : open_.back()->object_) keys.emplace_back(member.first);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) {
      throw Error(ErrorCode::kFormat,
                  cat(source_, ": the key '", *twice, "' appears twice in one object; which one holds is unclear"));
    }
    open_.pop_back();
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    const std::string_view before = input_.substr(0, std::min(position > 0 ? position - 1 : 0, input_.size()));
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const size_t column = before.size() - (before.rfind('\n') + 1) + 1;
    throw Error(ErrorCode::kFormat,
                cat(source_, ": line ", line, ", column ", column, ": is no JSON: ", reason(error.what())));
  }

  Json take() { return std::move(root_); }

 private:
  // What is left of nlohmann's message without its own number, position and the (arbitrarily long) last token.
  static std::string reason(std::string_view message) {
    for (const std::string_view before : {"while parsing ", "parse error", "] "}) {
      const size_t at = message.find(before);
      if (at == std::string_view::npos) continue;
      message.remove_prefix(at + before.size());
      break;
    }
    const size_t token = message.find("; last read: ");
    const size_t expected = message.find("; expected ");
    std::string out(message.substr(0, std::min({token, expected, size_t{160}})));
    if (expected != std::string_view::npos) out += message.substr(expected, 80);
    return out;
  }

  bool put_word(Json value) {
    ++words_;
    return put(std::move(value));
  }

  bool put(Json value) {
    place() = std::move(value);
    return true;
  }

  bool open(Json container) {
    if (open_.size() >= kMaxDepth) {
      throw Error(ErrorCode::kFormat,
                  cat(source_, ": is nested over ", kMaxDepth, " levels deep; no file of this kind is"));
    }
    Json& here = place();
    here = std::move(container);
    open_.push_back(&here);  // stays where it is: its parent grows only after it is closed
    return true;
  }

  Json& place() {
    if (open_.empty()) return root_;
    Json& parent = *open_.back();
    return parent.is_array() ? parent.array_.emplace_back() : parent.object_.back().second;
  }

  std::string_view input_, source_;
  const std::vector<Finite::Literal>& literals_;
  size_t words_ = 0, next_literal_ = 0;
  Json root_;
  std::vector<Json*> open_;
};

Json::Json(bool value) : kind_(Kind::kBool), bool_(value) {}
Json::Json(int64_t value) : kind_(Kind::kInt), int_(value) {}
Json::Json(uint64_t value) : kind_(Kind::kInt), int_(static_cast<int64_t>(value)) {
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    kind_ = Kind::kFloat;
    int_ = 0;
    float_ = static_cast<double>(value);
    text_ = std::to_string(value);
  }
}
Json::Json(double value) : kind_(Kind::kFloat), float_(value) {
  if (std::isnan(value)) {
    text_ = "NaN";
  } else if (std::isinf(value)) {
    text_ = value < 0 ? "-Infinity" : "Infinity";
  } else {
    text_ = cat(value);
    if (text_.find_first_of(".e") == std::string::npos) text_ += ".0";
  }
}
Json::Json(std::string value) : kind_(Kind::kString), text_(std::move(value)) {}

Json Json::array(Array items) {
  Json out;
  out.kind_ = Kind::kArray;
  out.array_ = std::move(items);
  return out;
}

Json Json::object(Object members) {
  Json out;
  out.kind_ = Kind::kObject;
  out.object_ = std::move(members);
  return out;
}

bool Json::as_bool() const {
  if (kind_ != Kind::kBool) wrong_kind(*this, "true or false");
  return bool_;
}

int64_t Json::as_int() const {
  if (kind_ == Kind::kInt) return int_;
  if (kind_ != Kind::kFloat) wrong_kind(*this, "an integer");
  if (!(std::fabs(float_) < 0x1p63) || std::trunc(float_) != float_) {
    throw Error(ErrorCode::kFormat, cat("found ", text_, "; wanted an integer of 64 bits"));
  }
  return static_cast<int64_t>(float_);
}

double Json::as_double() const {
  if (kind_ == Kind::kInt) return static_cast<double>(int_);
  if (kind_ != Kind::kFloat) wrong_kind(*this, "a number");
  return float_;
}

const std::string& Json::as_string() const {
  if (kind_ != Kind::kString) wrong_kind(*this, "a text");
  return text_;
}

const Json::Array& Json::items() const {
  if (kind_ != Kind::kArray) wrong_kind(*this, "an array");
  return array_;
}

const Json::Object& Json::members() const {
  if (kind_ != Kind::kObject) wrong_kind(*this, "an object");
  return object_;
}

const Json* Json::find(std::string_view key) const {
  const auto it = std::find_if(object_.begin(), object_.end(), [&](const Member& m) { return m.first == key; });
  return it == object_.end() ? nullptr : &it->second;
}

Json* Json::find(std::string_view key) { return const_cast<Json*>(std::as_const(*this).find(key)); }

const Json& Json::at(std::string_view key) const {
  if (kind_ != Kind::kObject) wrong_kind(*this, cat("an object with the key '", key, "'"));
  const Json* member = find(key);
  if (member == nullptr) throw Error(ErrorCode::kFormat, cat("the key '", key, "' is missing"));
  return *member;
}

Json& Json::operator[](std::string_view key) {
  if (kind_ == Kind::kNull) kind_ = Kind::kObject;
  if (kind_ != Kind::kObject) wrong_kind(*this, cat("an object to set '", key, "' in"));
  Json* member = find(key);
  return member != nullptr ? *member : object_.emplace_back(std::string(key), Json()).second;
}

void Json::push_back(Json value) {
  if (kind_ == Kind::kNull) kind_ = Kind::kArray;
  if (kind_ != Kind::kArray) wrong_kind(*this, "an array to append to");
  array_.push_back(std::move(value));
}

bool Json::erase(std::string_view key) {
  return std::erase_if(object_, [&](const Member& m) { return m.first == key; }) > 0;
}

bool Json::operator==(const Json& other) const {
  if (kind_ != other.kind_) return false;
  switch (kind_) {
    case Kind::kNull: return true;
    case Kind::kBool: return bool_ == other.bool_;
    case Kind::kInt: return int_ == other.int_;
    case Kind::kFloat: return text_ == other.text_ || float_ == other.float_;
    case Kind::kString: return text_ == other.text_;
    case Kind::kArray: return array_ == other.array_;
    case Kind::kObject: break;
  }
  return object_ == other.object_;
}

Json Json::parse(std::string_view text, std::string_view source) {
  const Finite finite = without_literals(text);
  JsonBuilder builder(text, source, finite.literals);
  const std::string_view plain = finite.text.empty() ? text : std::string_view(finite.text);
  nlohmann::json::sax_parse(plain.begin(), plain.end(), &builder);
  return builder.take();
}

Json Json::read(const std::filesystem::path& path, uint64_t max_bytes) {
  return parse(detail::read_text(path, max_bytes), path.string());
}

}  // namespace coppice
