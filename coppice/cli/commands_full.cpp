#include <array>

#include "coppice/cli/command.h"

namespace coppice::cli {

extern const Command kInspect, kPlan, kScore, kExpand, kConvert, kCluster, kVerify, kTokenize, kTrain, kEval, kReport,
    kDemo, kList;

std::span<const Command* const> commands() {
  static constexpr std::array kCommands = {&kInspect,  &kPlan,  &kScore, &kExpand, &kConvert, &kCluster, &kVerify,
                                           &kTokenize, &kTrain, &kEval,  &kReport, &kDemo,    &kList};
  return kCommands;
}

}  // namespace coppice::cli
