// The plan of a conversion stands in coppice.json, which anyone may edit: any text gives a plan that survives writing and
// reading and holds what carriers rely on, or Error{kFormat, kUsage}.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "coppice/base/error.h"
#include "coppice/upcycle/convert_plan.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using coppice::Json;
  using coppice::upcycle::ConversionPlan;
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
  return 0;
}
