// A plan file is edited by hand: any text gives a plan that survives writing and reading and holds what carriers rely on,
// or Error{kFormat, kUsage}.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "coppice/base/error.h"
#include "coppice/base/toml.h"
#include "coppice/upcycle/plan.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using coppice::upcycle::GrowthPlan;
  GrowthPlan plan;
  try {
    plan = GrowthPlan::from_json(coppice::parse_toml({reinterpret_cast<const char*>(data), size}, "input"), "input");
  } catch (const coppice::Error& e) {
    require(e.code == coppice::ErrorCode::kFormat || e.code == coppice::ErrorCode::kUsage);
    return 0;
  }
  for (const auto& layer : plan.layers) {
    require(layer.children.size() == static_cast<size_t>(plan.experts_after));
    for (const uint32_t siblings : layer.siblings(plan.experts_before)) require(siblings > 0);
  }
  require(GrowthPlan::from_json(plan.to_json(), "again") == plan);
  require(GrowthPlan::from_json(coppice::parse_toml(coppice::toml_text(plan.to_json()), "text"), "text") == plan);
  return 0;
}
