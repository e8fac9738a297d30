#include "coppice/api/cost.h"
#include "coppice/cli/command.h"
#include "coppice/cli/engine.h"
#include "coppice/cli/print.h"

namespace coppice::cli {
namespace {

int run(std::span<const std::string_view> args) {
  const auto o = parse<cost::CostOptions>("plan", api::kCostSummary, args);
  return print(api::cost(o, engine()), o.json);
}

}  // namespace

extern const Command kPlan;
const Command kPlan{"plan", api::kCostSummary, run};

}  // namespace coppice::cli
