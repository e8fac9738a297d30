#include <array>

#include "coppice/base/error.h"
#include "coppice/cli/command.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kNotHere = "(needs the training engine, which this build lacks)";

int refuse(std::span<const std::string_view>) {
  throw Error(ErrorCode::kUnsupported,
              "this is the core build, without the training engine; build the full one with `make build`");
}

constexpr Command kCluster{"cluster", kNotHere, refuse}, kScore{"score", kNotHere, refuse},
    kTrain{"train", kNotHere, refuse};
constexpr Command kEval{"eval", kNotHere, refuse}, kDemo{"demo", kNotHere, refuse};

}  // namespace

extern const Command kInspect, kPlan, kExpand, kConvert, kVerify, kTokenize, kReport, kList;

std::span<const Command* const> commands() {
  static constexpr std::array kCommands = {&kInspect,  &kPlan,  &kScore, &kExpand, &kConvert, &kCluster, &kVerify,
                                           &kTokenize, &kTrain, &kEval,  &kReport, &kDemo,    &kList};
  return kCommands;
}

}  // namespace coppice::cli
