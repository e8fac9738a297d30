#pragma once

// One `fields()` list per options struct defines the flags, the TOML keys, --help and the settings that are saved
// beside the output.
//
//   struct ExpandOptions {
//     std::filesystem::path model, out;
//     uint64_t seed = 0;
//     static constexpr auto fields() {
//       using O = ExpandOptions;
//       return std::tuple{operand("MODEL", &O::model, "source model directory (never changed)"),
//                         operand("OUT", &O::out, "target directory; must not exist"),
//                         field("seed", &O::seed, "random seed; same seed, same bytes")};
//     }
//   };
//   const auto options = parse<ExpandOptions>("expand", "summary", args);
//
// A field named "optimizer.lr" is the flag --optimizer.lr and the key lr of the TOML table [optimizer]; the operand
// MODEL is the key model. A field of type Json takes any TOML value, an array of tables too (as a flag: JSON text).
//
// Every command has --help, --config FILE.toml and --quiet, which main handles before the command runs. A command that
// prints results declares `bool json = false;` with field("json", &O::json, kJsonHelp).

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "coppice/base/json.h"

namespace coppice {

template <class Struct, class Value>
struct Field {
  std::string_view name;
  Value Struct::* member;
  std::string_view help;
  bool positional = false;
};

/// Help of the common flag --json.
inline constexpr std::string_view kJsonHelp = "print one JSON object instead of text";

template <class Struct, class Value>
constexpr Field<Struct, Value> field(std::string_view name, Value Struct::* member, std::string_view help) {
  return {name, member, help, false};
}
/// Positional. A std::optional may be left out. One operand may be a std::vector; it takes one or more texts: all but
/// those that the operands after it need.
template <class Struct, class Value>
constexpr Field<Struct, Value> operand(std::string_view name, Value Struct::* member, std::string_view help) {
  return {name, member, help, true};
}

/// The options that a command line or a settings file gave. A struct with a member `Given given` has it filled by
/// `parse`, `read_toml` and `read_object`.
class Given {
 public:
  /// A flag counts as given whatever its value. A key of a settings file counts only if its value is not the default,
  /// because the settings that a run saves state every default. A flag that sets the default again cancels the file's
  /// key.
  bool has(std::string_view name) const { return flags_.contains(name) || keys_.contains(name); }
  bool has_flag(std::string_view name) const { return flags_.contains(name); }
  void add_flag(std::string_view name) { flags_.emplace(name); }
  void add_key(std::string_view name) { keys_.emplace(name); }
  void remove(std::string_view name) { keys_.erase(std::string(name)); }

 private:
  std::set<std::string, std::less<>> flags_, keys_;
};

/// Throws   Error{kUsage}: "--NAME: it has no effect here; REASON (leave it out)". `dashes` is put before the name;
///          empty for the keys of a file.
[[noreturn]] void refuse_option(std::string_view option, std::string_view reason, std::string_view dashes = "--");

/// Options that have no effect if `when` is true, and the reason.
struct WithoutEffect {
  bool when;
  std::string reason;
  std::vector<std::string_view> options;
  bool flags_only = false;  ///< a settings file may still set them, for runs in which they have an effect
};

/// Throws   as refuse_option, for the first option that was given and has no effect.
void refuse_without_effect(const Given& given, std::initializer_list<WithoutEffect> rules,
                           std::string_view dashes = "--");

/// One option with its type erased. `read` parses text (Error{kUsage} if it is not valid); `write` gives text that
/// `read` takes.
struct OptionSpec {
  std::string name, help, type;  // type (of an item, in a list): "text", "path", "integer", "number", "flag", "json"
  bool positional = false, is_flag = false, is_list = false, optional = false;
  std::function<void(const std::vector<std::string>&)> read;
  std::function<Json()> write;  // the current value
};

namespace detail {

template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};
template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};

// Scalars. A user type joins by providing `static T from_text(std::string_view)` and `std::string to_text() const`.
void read_scalar(std::string& out, const std::string& text);
void read_scalar(std::filesystem::path& out, const std::string& text);
void read_scalar(bool& out, const std::string& text);
void read_scalar(int& out, const std::string& text);
void read_scalar(int64_t& out, const std::string& text);
void read_scalar(uint64_t& out, const std::string& text);
void read_scalar(double& out, const std::string& text);
template <class T>
  requires requires(std::string_view s) {
    { T::from_text(s) } -> std::same_as<T>;
  }
void read_scalar(T& out, const std::string& text) {
  out = T::from_text(text);
}

inline Json write_scalar(const std::string& v) { return Json(v); }
inline Json write_scalar(const std::filesystem::path& v) { return Json(v.string()); }
inline Json write_scalar(bool v) { return Json(v); }
inline Json write_scalar(int v) { return Json(v); }
inline Json write_scalar(int64_t v) { return Json(v); }
inline Json write_scalar(uint64_t v) { return Json(v); }
inline Json write_scalar(double v) { return Json(v); }
template <class T>
  requires requires(const T& t) {
    { t.to_text() } -> std::same_as<std::string>;
  }
Json write_scalar(const T& v) {
  return Json(v.to_text());
}

template <class T>
std::string type_name() {
  if constexpr (std::same_as<T, bool>)
    return "flag";
  else if constexpr (std::same_as<T, double>)
    return "number";
  else if constexpr (std::integral<T>)
    return "integer";
  else if constexpr (std::same_as<T, std::filesystem::path>)
    return "path";
  else
    return "text";
}

template <class Object, class Struct, class Value>
  requires std::derived_from<Object, Struct>
OptionSpec erase(Object& object, const Field<Struct, Value>& f) {
  OptionSpec spec;
  spec.name = f.name;
  spec.help = f.help;
  spec.positional = f.positional;
  Value* value = &(object.*(f.member));
  if constexpr (std::same_as<Value, Json>) {
    spec.type = "json";
    spec.read = [value](const std::vector<std::string>& texts) { *value = Json::parse(texts.back(), "value"); };
    spec.write = [value] { return *value; };
  } else if constexpr (IsVector<Value>::value) {
    using Item = typename Value::value_type;
    spec.type = type_name<Item>();
    spec.is_list = true;
    spec.read = [value](const std::vector<std::string>& texts) {
      value->clear();
      for (const auto& t : texts) {
        Item item{};
        read_scalar(item, t);
        value->push_back(std::move(item));
      }
    };
    spec.write = [value] {
      Json out = Json::array();
      for (const auto& v : *value) out.push_back(write_scalar(v));
      return out;
    };
  } else if constexpr (IsOptional<Value>::value) {
    spec.type = type_name<typename Value::value_type>();
    spec.optional = true;
    spec.read = [value](const std::vector<std::string>& texts) { read_scalar(value->emplace(), texts.back()); };
    spec.write = [value] { return value->has_value() ? write_scalar(**value) : Json(); };
  } else {
    spec.type = type_name<Value>();
    spec.is_flag = std::same_as<Value, bool>;
    spec.read = [value](const std::vector<std::string>& texts) { read_scalar(*value, texts.back()); };
    spec.write = [value] { return write_scalar(*value); };
  }
  return spec;
}

/// Default < --config FILE.toml < flag. Handles --help (prints to stdout and throws HelpShown).
Given parse_options(std::string_view command, std::string_view summary, std::span<OptionSpec> specs,
                    std::span<const std::string_view> args);

/// Sets fields from a TOML file.
Given read_settings(std::span<OptionSpec> specs, const std::filesystem::path& path);
Given read_settings(std::span<OptionSpec> specs, const Json& table, std::string_view source);

template <class Struct>
void keep_given(Struct& object, Given&& given) {
  if constexpr (requires { object.given; }) object.given = std::move(given);
}

}  // namespace detail

/// Thrown after --help was printed; `main` exits 0.
struct HelpShown {};

/// The fields of `object` as OptionSpecs, in order; they hold pointers into `object`.
template <class Struct>
std::vector<OptionSpec> option_specs(Struct& object) {
  return std::apply([&](const auto&... f) { return std::vector<OptionSpec>{detail::erase(object, f)...}; },
                    Struct::fields());
}

/// Throws   Error{kUsage}: an unknown option or key (with the nearest spelling), a missing operand, a bad value.
template <class Struct>
Struct parse(std::string_view command, std::string_view summary, std::span<const std::string_view> args) {
  Struct object;
  auto specs = option_specs(object);
  detail::keep_given(object, detail::parse_options(command, summary, specs, args));
  return object;
}

/// Sets fields from a TOML file only (tables become dotted names). Throws Error{kNotFound, kFormat, kUsage}.
template <class Struct>
void read_toml(Struct& object, const std::filesystem::path& path) {
  auto specs = option_specs(object);
  detail::keep_given(object, detail::read_settings(specs, path));
}

/// As read_toml, from a table that has been read already; `source` names it in errors.
template <class Struct>
void read_object(Struct& object, const Json& table, std::string_view source) {
  auto specs = option_specs(object);
  detail::keep_given(object, detail::read_settings(specs, table, source));
}

/// The current values as TOML text that `--config` can read, with a table per dotted prefix.
std::string to_toml(std::span<const OptionSpec> specs);
template <class Struct>
std::string to_toml(const Struct& object) {
  auto copy = object;
  const auto specs = option_specs(copy);
  return to_toml(std::span<const OptionSpec>(specs));
}

}  // namespace coppice
