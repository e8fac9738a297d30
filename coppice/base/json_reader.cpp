#include "coppice/base/json_reader.h"

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice {

struct JsonReader::Document {
  Json root;
  std::string source;
};

namespace {

/// Writes the path of keys from `root` to `wanted` into `path`; returns false if `wanted` is not below `root`.
bool find_path(const Json& root, const Json& wanted, std::string& path) {
  if (&root == &wanted) return true;
  const size_t here = path.size();
  if (root.is_array()) {
    for (size_t i = 0; i < root.items().size(); ++i) {
      path += cat("[", i, "]");
      if (find_path(root.items()[i], wanted, path)) return true;
      path.resize(here);
    }
  } else if (root.is_object()) {
    for (const auto& [key, value] : root.members()) {
      path += cat(here == 0 ? "" : ".", key);
      if (find_path(value, wanted, path)) return true;
      path.resize(here);
    }
  }
  return false;
}

}  // namespace

template <class Read>
decltype(auto) JsonReader::checked(const Read& read) const {
  try {
    return read(*value_);
  } catch (const Error& error) {
    fail(error.what());
  }
}

JsonReader::JsonReader(Json document, std::string source)
    : document_(std::make_shared<const Document>(std::move(document), std::move(source))), value_(&document_->root) {}

JsonReader JsonReader::parse(std::string_view text, std::string source, const JsonLimits& limits) {
  Json document = Json::parse(text, source, limits);
  return {std::move(document), std::move(source)};
}

JsonReader JsonReader::read(const std::filesystem::path& path, const JsonLimits& limits) {
  return {Json::read(path, limits), path.string()};
}

std::string JsonReader::place() const {
  std::string path;
  find_path(document_->root, *value_, path);
  return path.empty() ? document_->source : cat(document_->source, ": ", path);
}

void JsonReader::fail(std::string_view problem) const { throw Error(ErrorCode::kFormat, cat(place(), ": ", problem)); }

bool JsonReader::as_bool() const {
  return checked([](const Json& json) { return json.as_bool(); });
}

int64_t JsonReader::as_int() const {
  return checked([](const Json& json) { return json.as_int(); });
}

double JsonReader::as_double() const {
  return checked([](const Json& json) { return json.as_double(); });
}

const std::string& JsonReader::as_string() const {
  return checked([](const Json& json) -> const std::string& { return json.as_string(); });
}

std::vector<JsonReader> JsonReader::items() const {
  std::vector<JsonReader> out;
  for (const Json& item : checked([](const Json& json) -> const Json::Array& { return json.items(); })) {
    out.push_back({document_, item});
  }
  return out;
}

std::vector<std::pair<std::string_view, JsonReader>> JsonReader::members() const {
  std::vector<std::pair<std::string_view, JsonReader>> out;
  for (const auto& [key, value] : checked([](const Json& json) -> const Json::Object& { return json.members(); })) {
    out.emplace_back(key, JsonReader(document_, value));
  }
  return out;
}

JsonReader JsonReader::at(std::string_view key) const {
  return {document_, checked([&](const Json& json) -> const Json& { return json.at(key); })};
}

std::optional<JsonReader> JsonReader::find(std::string_view key) const {
  const Json* found = value_->find(key);
  if (found == nullptr) return std::nullopt;
  return JsonReader(document_, *found);
}

int64_t JsonReader::integer(int64_t lo, int64_t hi) const {
  const int64_t value = as_int();
  if (value < lo || value > hi) fail(cat("found ", value, "; wanted an integer from ", lo, " to ", hi));
  return value;
}

}  // namespace coppice
