#include "coppice/methods/params.h"

#include <charconv>
#include <cmath>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::methods {
namespace {

const ParamSpec* find_spec(std::span<const ParamSpec> specs, std::string_view key) {
  for (const ParamSpec& spec : specs) {
    if (spec.key == key) return &spec;
  }
  return nullptr;
}

void check_value(std::string_view method, const ParamSpec& spec, double value) {
  const bool whole = std::floor(value) == value;  // false for NaN
  const bool fits = value >= spec.lo && value <= spec.hi && (whole || !(spec.is_switch || spec.is_whole));
  if (fits) return;
  const std::string wanted =
      spec.is_switch ? "0 or 1"
                     : cat(spec.is_whole ? "a whole number from " : "a number from ", spec.lo, " to ", spec.hi);
  throw Error(ErrorCode::kUsage,
              cat(method, ": '", spec.key, "' is ", value, "; it must be ", wanted, " (", spec.help, ")"));
}

double parse_number(std::string_view method_text, std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) {
    throw Error(ErrorCode::kUsage,
                cat("'", method_text, "': '", text, "' is not a finite number; write name:key=number,key=number"));
  }
  return value;
}

}  // namespace

Params::Params(std::string_view method, std::span<const ParamSpec> specs, const std::map<std::string, double>& given) {
  for (const ParamSpec& spec : specs) values_.emplace(spec.key, spec.fallback);
  for (const auto& [key, value] : given) {
    const ParamSpec* spec = find_spec(specs, key);
    if (spec == nullptr) {
      std::vector<std::string> keys;
      for (const ParamSpec& s : specs) keys.emplace_back(s.key);
      throw Error(ErrorCode::kUsage, cat(method, ": there is no parameter '", key, "'",
                                         keys.empty() ? "; it has no parameters" : suggestion(key, keys)));
    }
    check_value(method, *spec, value);
    values_.find(key)->second = value;
  }
}

double Params::get(std::string_view key) const {
  const auto found = values_.find(key);
  COPPICE_CHECK(found != values_.end(), "parameter '", key, "'");
  return found->second;
}

MethodChoice MethodChoice::from_text(std::string_view text) {
  MethodChoice choice;
  const size_t colon = text.find(':');
  choice.name = text.substr(0, colon);
  if (choice.name.empty() || choice.name.find_first_of("=,") != std::string::npos) {
    throw Error(ErrorCode::kUsage, cat("'", text, "' is not a method; write name or name:key=number,key=number"));
  }
  if (colon == std::string_view::npos) return choice;
  for (const std::string& pair : split(text.substr(colon + 1), ',')) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw Error(ErrorCode::kUsage,
                  cat("'", text, "': '", pair, "' is not a parameter; write name:key=number,key=number"));
    }
    const std::string key = pair.substr(0, equals);
    if (!choice.given.emplace(key, parse_number(text, std::string_view(pair).substr(equals + 1))).second) {
      throw Error(ErrorCode::kUsage, cat("'", text, "': '", key, "' is given twice (keep one)"));
    }
  }
  return choice;
}

std::string MethodChoice::to_text() const {
  std::string text = name;
  char separator = ':';
  for (const auto& [key, value] : given) {
    text += cat(separator, key, "=", value);
    separator = ',';
  }
  return text;
}

MethodChoice complete(const MethodChoice& choice, std::span<const ParamSpec> specs) {
  const Params params(choice.name, specs, choice.given);
  return {choice.name, {params.values().begin(), params.values().end()}};
}

}  // namespace coppice::methods
