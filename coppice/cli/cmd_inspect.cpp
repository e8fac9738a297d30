#include "coppice/api/inspect.h"
#include "coppice/cli/command.h"
#include "coppice/cli/print.h"

namespace coppice::cli {
namespace {

int run(std::span<const std::string_view> args) {
  const auto o = parse<api::InspectOptions>("inspect", api::kInspectSummary, args);
  return print(api::inspect(o), o.json);
}

}  // namespace

extern const Command kInspect;
const Command kInspect{"inspect", api::kInspectSummary, run};

}  // namespace coppice::cli
