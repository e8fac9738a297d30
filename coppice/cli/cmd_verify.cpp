#include "coppice/api/verify.h"
#include "coppice/cli/command.h"
#include "coppice/cli/engine.h"
#include "coppice/cli/print.h"

namespace coppice::cli {
namespace {

int run(std::span<const std::string_view> args) {
  const auto o = parse<api::VerifyOptions>("verify", api::kVerifySummary, args);
  return print(api::verify(o, engine()), o.json);
}

}  // namespace

extern const Command kVerify;
const Command kVerify{"verify", api::kVerifySummary, run};

}  // namespace coppice::cli
