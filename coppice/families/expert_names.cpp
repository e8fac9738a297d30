#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/count_keys_detail.h"
#include "coppice/families/quantization.h"
#include "coppice/io/expert_mentions.h"

namespace coppice::families {
namespace {

using detail::speaks_of_a_tower;

constexpr std::string_view kDigits = "0123456789";

/// A module's name with an expert's number in it.
struct NumberedName {
  std::string text;
  size_t at, length;
  int64_t expert;

  std::string of(int64_t other) const { return std::string(text).replace(at, length, std::to_string(other)); }
};

class Names {
 public:
  Names(int64_t before, int64_t after, std::string_view source) : before_(before), after_(after), source_(source) {}

  Json visited(const Json& json, const std::string& place) const {
    if (json.is_array()) return visited_list(json, place);
    if (json.is_object()) return visited_map(json, place);
    if (json.is_string()) refuse_numbered(json.as_string(), place);
    return json;
  }

 private:
  Json visited_list(const Json& list, const std::string& place) const {
    std::set<std::string> texts;
    for (const Json& item : list.items()) {
      if (item.is_string()) texts.insert(item.as_string());
    }
    Json out = Json::array();
    for (const Json& item : list.items()) {
      const auto name = item.is_string() ? numbered(item.as_string(), place) : std::nullopt;
      if (!name) {
        out.push_back(item.is_string() ? item : visited(item, place));
        continue;
      }
      check_all_named(*name, place, [&](const std::string& other) { return texts.contains(other); });
      if (name->expert < after_) out.push_back(item);
    }
    for (const std::string& text : texts) {
      const auto name = numbered(text, place);
      if (!name || name->expert != 0) continue;
      for (int64_t expert = before_; expert < after_; ++expert) out.push_back(Json(name->of(expert)));
    }
    return out;
  }

  Json visited_map(const Json& map, const std::string& place) const {
    std::map<std::string, const Json*, std::less<>> values;
    for (const auto& [key, value] : map.members()) values.emplace(key, &value);
    Json::Object out;
    for (const auto& [key, value] : map.members()) {
      const std::string path = place.empty() ? key : cat(place, ".", key);
      if (key == "_name_or_path" || (value.is_object() && speaks_of_a_tower(key))) {
        out.emplace_back(key, value);
        continue;
      }
      const auto name = numbered(key, place);
      if (!name) {
        out.emplace_back(key, visited(value, path));
        continue;
      }
      check_all_named(*name, place, [&](const std::string& other) { return values.contains(other); });
      const Json& first = *values.at(name->of(0));
      if (!(value == first)) {
        throw Error(ErrorCode::kUnsupported, cat(source_, ": '", place, "' says ", value.dump(), " of '", key, "' and ",
                                                 first.dump(), " of '", name->of(0), "'; ", kAllAlike));
      }
      if (name->expert < after_) out.emplace_back(key, visited(value, path));
    }
    for (const auto& [key, value] : map.members()) {
      const auto name = numbered(key, place);
      if (!name || name->expert != 0) continue;
      for (int64_t expert = before_; expert < after_; ++expert) out.emplace_back(name->of(expert), value);
    }
    return Json::object(std::move(out));
  }

  /// None if `text` contains no expert's number.
  std::optional<NumberedName> numbered(const std::string& text, const std::string& place) const {
    const auto at = speaks_of_a_tower(text) ? std::nullopt : io::numbered_expert(text);
    if (!at) return std::nullopt;
    const size_t end = std::min(text.find_first_not_of(kDigits, *at), text.size());
    constexpr size_t kMostDigits = 9;
    const bool is_number = end > *at && end - *at <= kMostDigits && (text[*at] != '0' || end == *at + 1);
    const bool ends = end == text.size() || text[end] == '.' || text[end] == '_' || text[end] == '/';
    const bool is_name = text.find_first_of("*?+|\\^$(){}[]:,; ") == std::string::npos;
    if (!is_number || !ends || !is_name || io::numbered_expert(std::string_view(text).substr(end))) refuse(text, place);
    NumberedName name{text, *at, end - *at, std::stoll(text.substr(*at, end - *at))};
    if (name.expert < before_) return name;
    throw Error(ErrorCode::kUnsupported, cat(source_, ": '", place, "' names '", text, "', but the model has ", before_,
                                             " experts (correct it)"));
  }

  void refuse_numbered(const std::string& text, const std::string& place) const {
    if (!speaks_of_a_tower(text) && io::numbered_expert(text)) refuse(text, place);
  }

  [[noreturn]] void refuse(const std::string& text, const std::string& place) const {
    throw Error(ErrorCode::kUnsupported,
                cat(source_, ": '", place, "' has '", text,
                    "', which names experts by number in a way that coppice cannot extend to new ones; wanted "
                    "the module names of all experts in a list or a map, or a pattern of any number ('experts.*')"));
  }

  /// Each name gives that of expert 0, and that one all others.
  template <class Has>
  void check_all_named(const NumberedName& name, const std::string& place, Has has) const {
    for (int64_t expert = 0; expert < (name.expert == 0 ? before_ : 1); ++expert) {
      if (has(name.of(expert))) continue;
      throw Error(ErrorCode::kUnsupported,
                  cat(source_, ": '", place, "' names '", name.text, "' but not '", name.of(expert), "'; ", kAllAlike));
    }
  }

  static constexpr std::string_view kAllAlike =
      "coppice expands only models whose experts are all quantised in the same way";
  int64_t before_, after_;
  std::string_view source_;
};

}  // namespace

Json with_expert_names(const Json& json, int64_t before, int64_t after, std::string_view source) {
  return Names(before, after, source).visited(json, {});
}

}  // namespace coppice::families
