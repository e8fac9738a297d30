#include "coppice/base/toml.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cmath>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/text.h"

namespace coppice {
namespace {

constexpr uint64_t kMaxBytes = uint64_t{64} << 20;

std::string place(std::string_view path, const toml::source_region& region) {
  return cat(path, ": line ", region.begin.line, ", column ", region.begin.column);
}

// Nesting is bounded by the parser (256 levels).
Json to_json(const toml::node& node, std::string_view path) {
  if (const auto* table = node.as_table()) {
    Json out = Json::object();
    for (const auto& [key, value] : *table) out[key.str()] = to_json(value, path);
    return out;
  }
  if (const auto* array = node.as_array()) {
    Json out = Json::array();
    for (const auto& value : *array) out.push_back(to_json(value, path));
    return out;
  }
  if (const auto* text = node.as_string()) return Json(text->get());
  if (const auto* integer = node.as_integer()) return Json(integer->get());
  if (const auto* number = node.as_floating_point()) return Json(number->get());
  if (const auto* truth = node.as_boolean()) return Json(truth->get());
  throw Error(ErrorCode::kFormat,
              cat(place(path, node.source()), ": is a date or time; coppice has no option of that type (quote it)"));
}

std::string basic_string(std::string_view text) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += cat("\\u00", kHex[static_cast<size_t>(c) >> 4], kHex[static_cast<size_t>(c) & 15]);
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string key_text(std::string_view key) {
  const bool bare = !key.empty() && std::all_of(key.begin(), key.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
  return bare ? std::string(key) : basic_string(key);
}

std::string number_of(const Json& value) {
  const double number = value.as_double();
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  const std::string text = value.dump();
  const bool is_float = text.find_first_of(".eE") != std::string::npos;
  return is_float ? text : basic_string(text);  // an integer above TOML's 64 signed bits
}

std::string inline_text(const Json& value) {
  std::string out;
  switch (value.kind()) {
    case Json::Kind::kString: return basic_string(value.as_string());
    case Json::Kind::kFloat: return number_of(value);
    case Json::Kind::kArray:
      for (const Json& item : value.items()) out += cat(out.empty() ? "" : ", ", inline_text(item));
      return cat("[", out, "]");
    case Json::Kind::kObject:
      for (const auto& [key, item] : value.members()) {
        if (!item.is_null()) out += cat(out.empty() ? "" : ", ", key_text(key), " = ", inline_text(item));
      }
      return out.empty() ? "{}" : cat("{ ", out, " }");
    default: return value.dump();
  }
}

bool is_array_of_tables(const Json& value) {
  return value.is_array() && !value.items().empty() &&
         std::all_of(value.items().begin(), value.items().end(), [](const Json& item) { return item.is_object(); });
}

void write_table(std::string& out, const Json& table, const std::string& name) {
  for (const auto& [key, value] : table.members()) {
    if (value.is_null() || value.is_object() || is_array_of_tables(value)) continue;
    out += cat(key_text(key), " = ", inline_text(value), "\n");
  }
  const auto full_name = [&](const std::string& key) { return cat(name, name.empty() ? "" : ".", key_text(key)); };
  const auto header = [&](std::string_view open, const std::string& key, std::string_view close) {
    out += cat(out.empty() ? "" : "\n", open, full_name(key), close, "\n");
  };
  for (const auto& [key, value] : table.members()) {
    if (!value.is_object()) continue;
    header("[", key, "]");
    write_table(out, value, full_name(key));
  }
  for (const auto& [key, value] : table.members()) {
    if (!is_array_of_tables(value)) continue;
    for (const Json& item : value.items()) {
      header("[[", key, "]]");
      write_table(out, item, full_name(key));
    }
  }
}

}  // namespace

Json parse_toml(std::string_view text, std::string_view source) {
  try {
    return to_json(toml::parse(text, std::string(source)), source);
  } catch (const toml::parse_error& e) {
    throw Error(ErrorCode::kFormat, cat(place(source, e.source()), ": is not valid TOML: ", e.description()));
  }
}

Json read_toml(const std::filesystem::path& path) { return parse_toml(read_file(path, kMaxBytes), path.string()); }

std::string toml_text(const Json& value) {
  COPPICE_CHECK(value.is_object(), "TOML holds tables only");
  std::string out;
  write_table(out, value, "");
  return out;
}

}  // namespace coppice
