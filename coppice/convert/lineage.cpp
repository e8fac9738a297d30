#include "coppice/convert/lineage.h"

#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/model_directory.h"
#include "coppice/plan/lineage.h"

namespace coppice::convert {
namespace {

/// Runs `read` and names the newest step in its errors.
template <class Read>
auto read_newest(const Json& lineage, const Read& read) {
  const std::string source = cat(io::kLineageFile, ": step ", lineage.at("steps").items().size() - 1);
  try {
    return read(source);
  } catch (const Error& error) {
    const std::string_view message = error.what();
    throw Error(ErrorCode::kFormat, message.starts_with(source) ? std::string(message) : cat(source, ": ", message));
  }
}

}  // namespace

Json extend_lineage(const std::optional<Json>& before, const ConversionRecord& record) {
  const ConversionPlan* plan = record.plan;
  Json step = plan::lineage_step(plan != nullptr ? plan::kConvertCommand : plan::kAverageCommand,
                                 plan != nullptr ? plan->seed : 0, record.source_digests.front());
  step["source_digests"] = Json::array_of(record.source_digests);
  step["families"] = Json::array({Json(record.from), Json(record.to)});
  step["experts"] = plan != nullptr ? Json::array({Json(plan->slices()), Json(plan->experts)})
                                    : Json::array({Json(record.experts_before), Json(0)});
  step["order"] = "append";
  Json& methods = step["methods"] = Json::object();
  if (plan != nullptr) {
    methods["expert_init"] = plan->expert_init.to_text();
    methods["router"] = plan->router.to_text();
    methods["routing"] = plan->routing;
  }
  for (const auto& [name, digest] : record.given_routers) step["router_digests"][name] = digest;
  if (!record.losses.empty()) step["losses"] = Json::array_of(record.losses);
  if (!record.settings.is_null()) step["settings"] = record.settings;
  if (plan != nullptr) {
    step["plan"] = plan->to_json();
    step["parents"] = plan::parents_json(plan->layers);
  }
  return plan::with_step(before, std::move(step));
}

std::optional<ConversionPlan> newest_conversion(const Json& lineage) {
  const Json* step = plan::newest_step(lineage);
  if (step == nullptr || step->at("command").as_string() != plan::kConvertCommand) return std::nullopt;
  return read_newest(lineage, [&](const std::string& source) {
    return ConversionPlan::from_json(step->at("plan"), cat(source, ": plan"));
  });
}

std::map<std::string, std::string> given_routers(const Json& lineage) {
  std::map<std::string, std::string> out;
  if (!newest_conversion(lineage)) return out;
  const Json* digests = plan::newest_step(lineage)->find("router_digests");
  if (digests == nullptr) return out;
  return read_newest(lineage, [&](const std::string&) {
    for (const auto& [name, digest] : digests->members()) out[name] = digest.as_string();
    return out;
  });
}

}  // namespace coppice::convert
