#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/toml.h"
#include "coppice/options/options_detail.h"

namespace coppice {
namespace {

std::string text_of(const Json& value) { return value.is_string() ? value.as_string() : value.dump(); }

std::vector<std::string> texts_of(const OptionSpec& spec, const Json& value, std::string_view subject) {
  if (spec.type == "json") return {value.dump()};
  const bool one = !value.is_array() && !value.is_object();
  if (!spec.is_list && !one) {
    throw Error(ErrorCode::kUsage,
                cat(subject, ": found ", value.is_array() ? "an array" : "a table", "; wanted a single ", spec.type));
  }
  if (one) return {text_of(value)};
  std::vector<std::string> texts;
  for (const Json& item : value.items()) texts.push_back(text_of(item));
  return texts;
}

// Walks through nested tables and calls `use` with the dotted name of each value; `use` returns whether it knew the
// key.
template <class Use>
void walk(const Json& table, const std::string& prefix, const std::vector<std::string>& keys, const Use& use) {
  for (const auto& [key, value] : table.members()) {
    const std::string name = prefix + key;
    const bool is_key = std::find(keys.begin(), keys.end(), name) != keys.end();
    if (value.is_object() && !is_key) {
      walk(value, name + ".", keys, use);
    } else {
      use(name, value, is_key);
    }
  }
}

}  // namespace

std::string detail::key_of(const OptionSpec& spec) {
  std::string key = spec.name;
  if (spec.positional) {
    std::transform(key.begin(), key.end(), key.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  }
  return key;
}

void detail::assign(OptionSpec& spec, const std::vector<std::string>& texts, std::string_view subject) {
  try {
    spec.read(texts);
  } catch (const Error& e) {
    throw Error(e.code, cat(subject, ": ", e.what()));
  }
}

std::vector<const OptionSpec*> detail::assign_settings(std::span<OptionSpec> specs, const Json& settings,
                                                       std::string_view source, Given& given) {
  std::vector<std::string> keys, unknown;
  for (const auto& spec : specs) keys.push_back(key_of(spec));
  std::vector<const OptionSpec*> set;
  walk(settings, "", keys, [&](const std::string& name, const Json& value, bool is_key) {
    if (!is_key) {
      unknown.push_back(cat("'", name, "'", suggestion(name, keys)));
      return;
    }
    OptionSpec& spec = specs[static_cast<size_t>(std::find(keys.begin(), keys.end(), name) - keys.begin())];
    const std::string subject = cat(source, ": ", name);
    const Json before = spec.write();
    assign(spec, texts_of(spec, value, subject), subject);
    if (spec.write() != before) given.add_key(spec.name);
    set.push_back(&spec);
  });
  if (!unknown.empty()) {
    throw Error(ErrorCode::kUsage, cat(source, ": unknown key", unknown.size() > 1 ? "s " : " ", join(unknown, "; ")));
  }
  return set;
}

Given detail::read_settings(std::span<OptionSpec> specs, const std::filesystem::path& path) {
  Given given;
  assign_settings(specs, read_toml(path), path.string(), given);
  return given;
}

Given detail::read_settings(std::span<OptionSpec> specs, const Json& table, std::string_view source) {
  if (!table.is_object()) {
    throw Error(ErrorCode::kUsage, cat(source, ": found ", table.dump().substr(0, 40), "; wanted a table"));
  }
  Given given;
  assign_settings(specs, table, source, given);
  return given;
}

std::string to_toml(std::span<const OptionSpec> specs) {
  Json settings = Json::object();
  for (const auto& spec : specs) {
    Json value = spec.write();
    if (value.is_null()) continue;
    Json* table = &settings;
    const auto parts = split(detail::key_of(spec), '.');
    for (size_t i = 0; i + 1 < parts.size(); ++i) table = &(*table)[parts[i]];
    (*table)[parts.back()] = std::move(value);
  }
  return toml_text(settings);
}

}  // namespace coppice
