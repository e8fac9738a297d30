#include "coppice/api/expand.h"
#include "coppice/cli/command.h"
#include "coppice/cli/print.h"
#include "coppice/cli/voice.h"

namespace coppice::cli {
namespace {

int run(std::span<const std::string_view> args) {
  const auto o = parse<grow::ExpandOptions>("expand", api::kExpandSummary, args);
  speak_as(o.part);
  return print(api::expand(o), o.json);
}

}  // namespace

extern const Command kExpand;
const Command kExpand{"expand", api::kExpandSummary, run};

}  // namespace coppice::cli
