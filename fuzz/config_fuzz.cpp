// read_config takes any JSON: it gives a configuration whose tensors can be listed and counted, whose expert count can be
// rewritten and of which plans can be made, or an error about the input.
#include "coppice/families/match.h"
#include "coppice/plan/plan.h"
#include "fuzz/fuzzed.h"

namespace plan = coppice::plan;

namespace {

namespace families = coppice::families;
using coppice::Error;
using coppice::ErrorCode;
using coppice::fuzz::require;
using coppice::fuzz::require_refusal;

void grow(const families::ModelConfig& config, const plan::GrowthOptions& options) {
  try {
    const auto plan = plan::make_plan(config, options, nullptr);
    require(!plan.layers.empty());
    require(families::read_config(plan::grown_config(config, plan), "grown").num_experts == plan.experts_after);
  } catch (const Error& e) {
    require_refusal(e, {ErrorCode::kFormat, ErrorCode::kUsage, ErrorCode::kUnsupported});
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  families::ModelConfig config;
  try {
    config = families::read_config(coppice::Json::parse(coppice::fuzz::text_of(data, size), "input"), "input");
  } catch (const Error& e) {
    require_refusal(e, {ErrorCode::kFormat, ErrorCode::kUnsupported});
    return 0;
  }
  require(config.num_layers >= 0 && config.num_experts >= 0 && config.top_k <= config.num_experts);
  const bool is_small = config.num_layers * (config.num_experts + 1) <= 1024;
  if (is_small && !config.placed_by_weights()) {
    for (const auto& slot : families::expected_tensors(config)) require(!slot.name.empty());
  }
  if (!config.is_moe()) return 0;
  try {
    const auto grown = families::with_num_experts(config, 2 * config.num_experts);
    require(families::read_config(grown, "grown").num_experts == 2 * config.num_experts);
  } catch (const Error& e) {
    // Too many in all or a number of groups that no longer fits; a key that may or may not count experts.
    require_refusal(e, {ErrorCode::kFormat, ErrorCode::kUnsupported});
  }
  if (!is_small) return 0;
  grow(config, {});
  grow(config, {.experts = {"3x"}, .scale_top_k = true});
  grow(config, {.split = 2});
  return 0;
}
