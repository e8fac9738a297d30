#include "coppice/api/api.h"

#include <utility>

#include "coppice/api/call.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::api {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> texts_of(const std::vector<fs::path>& paths) {
  std::vector<std::string> texts;
  for (const fs::path& path : paths) texts.push_back(path.string());
  return texts;
}

Settings with(Settings settings, std::initializer_list<std::pair<const std::string, Value>> operands) {
  for (const auto& operand : operands) {
    if (!settings.insert(operand).second)
      throw Error(ErrorCode::kUsage, cat(operand.first, ": given as an argument and as an option; wanted once"));
  }
  return settings;
}

/// A member of an object; the default if it is not there.
int64_t count_of(const Json* object, std::string_view key) {
  const Json* found = object == nullptr ? nullptr : object->find(key);
  return found == nullptr ? 0 : found->as_int();
}

Result result_of(const Outcome& outcome) { return {outcome.ok, outcome.text, outcome.json.dump(2)}; }

}  // namespace

Expanded expand(const fs::path& model, const fs::path& out, const Settings& settings) {
  const Outcome outcome = call("expand", with(settings, {{"model", model}, {"out", out}}));
  const Json& json = outcome.json;
  Expanded result{result_of(outcome)};
  result.experts_before = json.at("experts").items()[0].as_int();
  result.experts_after = json.at("experts").items()[1].as_int();
  if (const Json& exact = json.at("exact"); !exact.is_null()) result.exact = exact.as_bool();
  result.exactness = json.at("exactness").as_string();
  return result;
}

std::string plan(const fs::path& model, const Settings& settings) {
  return call("plan", with(settings, {{"model", model}})).text;
}

Result convert(const std::vector<fs::path>& models, const fs::path& out, const Settings& settings) {
  return result_of(call("convert", with(settings, {{"model", texts_of(models)}, {"out", out}})));
}

Result verify(const std::vector<fs::path>& before, const fs::path& after, const Settings& settings) {
  return result_of(call("verify", with(settings, {{"before", texts_of(before)}, {"after", after}})));
}

Inspected inspect(const fs::path& model, const Settings& settings) {
  const Outcome outcome = call("inspect", with(settings, {{"model", model}}));
  Inspected result{result_of(outcome)};
  const Json& json = outcome.json;
  if (const Json* family = json.find("model_type")) result.family = family->as_string();
  result.layers = count_of(&json, "layers");
  result.experts = count_of(&json, "experts");
  result.parameters = count_of(json.find("parameters"), "total");
  result.active_parameters = count_of(json.find("parameters"), "active");
  return result;
}

Result cost(const fs::path& model, const Settings& settings) {
  return result_of(call("cost", with(settings, {{"model", model}})));
}

}  // namespace coppice::api
