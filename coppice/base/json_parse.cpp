// Json::parse, on rapidjson's SAX events: numbers arrive as text, and rapidjson builds no tree of its own.
#include <rapidjson/error/en.h>
#include <rapidjson/memorystream.h>
#include <rapidjson/reader.h>

#include <algorithm>
#include <charconv>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/text.h"

namespace coppice {
namespace {

constexpr size_t kMaxDepth = 64;

/// Vectors double their capacity while they grow; long ones with spare capacity are shrunk.
constexpr size_t kSpareItems = 64;

struct Place {
  size_t line = 1, column = 1;
};

Place place_of(std::string_view text, size_t offset) {
  const std::string_view before = text.substr(0, std::min(offset, text.size()));
  return {1 + static_cast<size_t>(std::count(before.begin(), before.end(), '\n')),
          before.size() - (before.rfind('\n') + 1) + 1};
}

[[noreturn]] void fail(std::string_view text, std::string_view source, size_t offset, std::string_view what) {
  const Place place = place_of(text, offset);
  throw Error(ErrorCode::kFormat, cat(source, ": line ", place.line, ", column ", place.column, ": ", what));
}

}  // namespace

/// Receives rapidjson's events and builds the whole value, or one member of an object at a time.
class JsonBuilder {
 public:
  using Take = std::function<void(std::string_view key, const Json& value)>;

  JsonBuilder(std::string_view text, std::string_view source, uint64_t max_values)
      : text_(text), source_(source), max_values_(max_values), stream_(text.data(), text.size()) {}

  /// Passes on the members of the object `inside` (empty: of the document).
  void pass_members(std::string_view inside, const Take& take) {
    inside_ = inside;
    take_ = &take;
  }

  void run() {
    constexpr unsigned kFlags = rapidjson::kParseIterativeFlag | rapidjson::kParseNumbersAsStringsFlag |
                                rapidjson::kParseNanAndInfFlag | rapidjson::kParseValidateEncodingFlag;
    rapidjson::Reader reader;
    const rapidjson::ParseResult result = reader.Parse<kFlags>(stream_, *this);
    if (result.IsError()) {
      std::string_view why = rapidjson::GetParseError_En(result.Code());
      if (why.ends_with('.')) why.remove_suffix(1);
      fail(text_, source_, result.Offset(), cat("is not valid JSON: ", why));
    }
    // rapidjson takes a zero byte for the end of the text.
    if (stream_.Tell() != text_.size()) fail(text_, source_, stream_.Tell(), "is not valid JSON: a zero byte");
  }

  Json take() { return std::move(root_); }
  bool found() const { return found_; }

  // The names are rapidjson's. NOLINTBEGIN(readability-identifier-naming)
  bool Null() { return put(Json()); }
  bool Bool(bool value) { return put(Json(value)); }
  bool RawNumber(const char* digits, rapidjson::SizeType length, bool) {
    return is_passed_over() || put(number({digits, length}));
  }
  bool String(const char* value, rapidjson::SizeType length, bool) {
    check_text({value, length});
    return is_passed_over() || put(Json(std::string(value, length)));
  }
  bool Key(const char* value, rapidjson::SizeType length, bool) {
    check_text({value, length});
    if (take_ != nullptr && open_.empty()) {
      key_.assign(value, length);
      count_ = 0;
      return true;
    }
    own(open_.back()->value_.object).emplace_back(std::string(value, length), Json());
    return true;
  }
  bool StartObject() { return open(Json::object()); }
  bool StartArray() { return open(Json::array()); }
  bool EndArray(rapidjson::SizeType) {
    if (!open_.empty()) shrink(open_.back()->value_.array);
    return close();
  }
  bool EndObject(rapidjson::SizeType) {
    if (!open_.empty()) {
      shrink(open_.back()->value_.object);
      check_keys(open_.back()->members());
    }
    return close();
  }
  // Never called: numbers come raw.
  bool Int(int) { return false; }
  bool Uint(unsigned) { return false; }
  bool Int64(int64_t) { return false; }
  bool Uint64(uint64_t) { return false; }
  bool Double(double) { return false; }
  // NOLINTEND(readability-identifier-naming)

 private:
  template <class Held>
  static Held& own(Held*& pointer) {
    if (pointer == nullptr) pointer = new Held;
    return *pointer;
  }
  template <class Held>
  static void shrink(Held* items) {
    if (items != nullptr && items->capacity() - items->size() > kSpareItems) items->shrink_to_fit();
  }

  /// The depth of the members to pass on.
  size_t passed_depth() const { return inside_.empty() ? 1 : 2; }
  /// Whether this event lies outside of the values that are built.
  bool is_passed_over() const { return take_ != nullptr && open_.empty() && !(is_inside_ && depth_ == passed_depth()); }

  Json number(std::string_view digits) {
    if (digits.find_first_not_of("-0123456789") == std::string_view::npos && digits != "-0") {
      int64_t value = 0;
      const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
      if (error == std::errc()) return value;
    } else if (const char last = digits.back(); last < '0' || last > '9') {
      if (digits != "NaN" && digits != "Infinity" && digits != "-Infinity") {
        fail(text_, source_, stream_.Tell(), cat("is not valid JSON: '", digits, "'"));
      }
      return Json::number(std::string(digits));
    }
    double value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    const bool is_large = digits.find("e-") == std::string_view::npos && digits.find("E-") == std::string_view::npos;
    if (error == std::errc::result_out_of_range && is_large) {
      fail(text_, source_, stream_.Tell(), "is not valid JSON: a number outside the range of a double");
    }
    return Json::number(std::string(digits));
  }

  /// rapidjson accepts the second half of a surrogate pair alone, which UTF-8 cannot encode.
  void check_text(std::string_view text) const {
    for (size_t at = text.find('\xed'); at != text.npos; at = text.find('\xed', at + 1)) {
      if (at + 1 < text.size() && static_cast<unsigned char>(text[at + 1]) >= 0xa0)
        fail(text_, source_, stream_.Tell(), "is not valid JSON: half of a surrogate pair");
    }
  }

  void count() {
    if (++count_ <= max_values_) return;
    fail(text_, source_, stream_.Tell(),
         cat("over ", max_values_, take_ == nullptr ? " values" : " values in one member",
             "; no valid file of this kind has so many (check that it is the right file)"));
  }

  bool put(Json value) {
    if (is_passed_over()) return true;
    count();
    place() = std::move(value);
    pass_on();
    return true;
  }

  bool open(Json container) {
    if (depth_ == 0) in_object_ = container.is_object();
    if (++depth_ > kMaxDepth) {
      throw Error(ErrorCode::kFormat,
                  cat(source_, ": is nested over ", kMaxDepth,
                      " levels deep; no valid file of this kind is (check that it is the right file)"));
    }
    if (take_ != nullptr && open_.empty()) {
      if (!is_inside_ && in_object_ && depth_ == passed_depth() && (inside_.empty() || key_ == inside_)) {
        if (found_) fail(text_, source_, stream_.Tell(), cat("the key '", inside_, "' appears twice in one object"));
        is_inside_ = found_ = container.is_object();
        return true;
      }
      // A value beside the object `inside`, or the document that holds the object.
      if (!(is_inside_ && depth_ == passed_depth() + 1)) return true;
    }
    count();
    Json& here = place();
    here = std::move(container);
    open_.push_back(&here);  // the address stays valid: the parent's vector grows only after this value is closed
    return true;
  }

  bool close() {
    --depth_;
    if (open_.empty()) {
      if (is_inside_ && depth_ < passed_depth()) is_inside_ = false;
      return true;
    }
    open_.pop_back();
    pass_on();
    return true;
  }

  void pass_on() {
    if (take_ == nullptr || !open_.empty()) return;
    (*take_)(key_, root_);
    root_ = Json();
  }

  void check_keys(const Json::Object& members) const {
    std::vector<std::string_view> keys;
    keys.reserve(members.size());
    for (const auto& member : members) keys.emplace_back(member.first);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice == keys.end()) return;
    fail(text_, source_, stream_.Tell(),
         cat("the key '", *twice, "' appears twice in one object, so its value is ambiguous (remove one)"));
  }

  Json& place() {
    if (open_.empty()) return root_;
    Json& parent = *open_.back();
    return parent.is_array() ? own(parent.value_.array).emplace_back() : parent.value_.object->back().second;
  }

  std::string_view text_, source_;
  uint64_t max_values_, count_ = 0;
  rapidjson::MemoryStream stream_;
  Json root_;
  std::vector<Json*> open_;
  size_t depth_ = 0;

  std::string_view inside_;
  const Take* take_ = nullptr;
  std::string key_;
  bool in_object_ = false, is_inside_ = false, found_ = false;
};

Json Json::parse(std::string_view text, std::string_view source, const JsonLimits& limits) {
  JsonBuilder builder(text, source, limits.values);
  builder.run();
  return builder.take();
}

bool Json::each_member(std::string_view text, std::string_view source, std::string_view inside,
                       uint64_t values_of_member, const JsonBuilder::Take& take) {
  JsonBuilder builder(text, source, values_of_member);
  builder.pass_members(inside, take);
  builder.run();
  return builder.found();
}

}  // namespace coppice
