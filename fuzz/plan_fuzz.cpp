// A plan file is edited by hand: any text gives a plan that survives writing and reading and holds what carriers rely on,
// or Error{kFormat, kUsage}. A plan that fits a model has an expanded configuration, a text and a verdict.
#include "coppice/base/toml.h"
#include "coppice/grow/exactness.h"
#include "coppice/plan/plan.h"
#include "coppice/plan/text.h"
#include "fuzz/fuzzed.h"

namespace grow = coppice::grow;
namespace plan = coppice::plan;

namespace {

using coppice::Error;
using coppice::ErrorCode;
using coppice::fuzz::require;
using coppice::fuzz::require_refusal;
using coppice::plan::GrowthPlan;

void use(const coppice::families::Model& model, const GrowthPlan& plan) {
  const auto& config = model.config;
  try {
    plan::check_plan(config, plan, false);
    const auto grown = coppice::families::read_config(plan::grown_config(config, plan), "grown");
    require(grown.num_experts == plan.experts_after);
  } catch (const Error& e) {
    require_refusal(e, {ErrorCode::kFormat, ErrorCode::kUsage, ErrorCode::kUnsupported});
    return;
  }
  require(!grow::growth_exactness(model, plan).reason.empty());
  require(!plan::copies_text(plan).empty() && !plan::methods_text(plan).empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  GrowthPlan plan;
  try {
    plan = GrowthPlan::from_json(coppice::parse_toml(coppice::fuzz::text_of(data, size), "input"), "input");
  } catch (const Error& e) {
    require_refusal(e, {ErrorCode::kFormat, ErrorCode::kUsage});
    return 0;
  }
  for (const auto& layer : plan.layers) {
    require(layer.children.size() == static_cast<size_t>(plan.experts_after));
    for (const uint32_t siblings : layer.siblings(plan.experts_before)) require(siblings > 0);
  }
  require(GrowthPlan::from_json(plan.to_json(), "again") == plan);
  require(GrowthPlan::from_json(coppice::parse_toml(coppice::toml_text(plan.to_json()), "text"), "text") == plan);
  for (const auto& model : coppice::fuzz::tiny_models()) use(model, plan);
  return 0;
}
