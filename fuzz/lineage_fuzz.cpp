// coppice.json may come from anybody: any JSON is a lineage whose newest step can be read, written on and taken back, or
// an error about the input.
#include "coppice/convert/lineage.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/undo.h"
#include "fuzz/fuzzed.h"

namespace convert = coppice::convert;
namespace plan = coppice::plan;

namespace {

using coppice::Error;
using coppice::ErrorCode;
using coppice::Json;
using coppice::fuzz::require;
using coppice::fuzz::require_refusal;

void take_back(const coppice::families::ModelConfig& config, const Json& lineage) {
  plan::GrowthPlan plan;
  try {
    plan = plan::undo_plan(config, lineage);
    const auto before = coppice::families::read_config(plan::grown_config(config, plan), "before");
    require(before.num_experts == plan.experts_after);
  } catch (const Error& e) {
    require_refusal(e, {ErrorCode::kFormat, ErrorCode::kUsage, ErrorCode::kUnsupported});
    return;
  }
  for (const auto& layer : plan.layers) {
    require(layer.children.size() == static_cast<size_t>(plan.experts_after));
    for (const auto& child : layer.children) require(child.parent < static_cast<size_t>(plan.experts_before));
  }
  require(plan::extend_lineage(lineage, plan, "expand", "digest").at("steps").items().size() + 1 ==
          lineage.at("steps").items().size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Json lineage;
  try {
    lineage = Json::parse(coppice::fuzz::text_of(data, size), "input");
    (void)plan::newest_parents(lineage);
    (void)convert::newest_conversion(lineage);
    (void)plan::lineage_share(lineage);
  } catch (const Error& e) {
    require_refusal(e, {ErrorCode::kFormat, ErrorCode::kUsage, ErrorCode::kUnsupported});
    return 0;
  }
  for (const auto& config : coppice::fuzz::tiny_configs()) take_back(config, lineage);
  return 0;
}
