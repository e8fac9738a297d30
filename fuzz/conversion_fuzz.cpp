// The plan of a conversion stands in coppice.json, which anyone may edit: any text gives a plan that survives writing and
// reading and holds what carriers rely on, or Error{kFormat, kUsage}; one that fits a model says what becomes of every
// tensor.

#include "coppice/convert/map.h"
#include "coppice/convert/plan.h"
#include "coppice/families/match.h"
#include "fuzz/fuzzed.h"

namespace {

using coppice::convert::ConversionPlan;
using coppice::fuzz::require;

/// A model of 2 layers of 64 units.
const coppice::families::ModelConfig& dense_config() {
  static const auto config = [] {
    coppice::models::ModelSizes sizes;
    sizes.family = "llama";
    sizes.num_layers = 2;
    sizes.dense_width = 64;
    return coppice::families::read_config(coppice::models::make_config(sizes, coppice::io::Dtype::kBf16), "llama");
  }();
  return config;
}

void use(const ConversionPlan& plan) {
  using coppice::ErrorCode;
  constexpr int64_t kMostExperts = 256;
  static const auto slots = coppice::families::expected_tensors(dense_config());
  try {
    check_conversion_plan(dense_config(), plan);
    if (plan.experts > kMostExperts) return;
    require(!map_to_moe(dense_config(), slots, plan).tensors.empty());
  } catch (const coppice::Error& e) {
    coppice::fuzz::require_refusal(e, {ErrorCode::kFormat, ErrorCode::kUsage, ErrorCode::kUnsupported});
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using coppice::Json;
  ConversionPlan plan;
  try {
    plan = ConversionPlan::from_json(Json::parse({reinterpret_cast<const char*>(data), size}, "input"), "input");
  } catch (const coppice::Error& e) {
    require(e.code == coppice::ErrorCode::kFormat || e.code == coppice::ErrorCode::kUsage);
    return 0;
  }
  for (const auto& layer : plan.layers) {
    require(layer.children.size() == static_cast<size_t>(plan.experts));
    for (const auto& child : layer.children) require(child.parent < plan.slices());
  }
  require(ConversionPlan::from_json(Json::parse(plan.to_json().dump(), "text"), "again") == plan);
  use(plan);
  return 0;
}
