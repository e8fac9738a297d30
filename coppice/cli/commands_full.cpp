#include <array>

#include "coppice/cli/command.h"

namespace coppice::cli {

extern const Command kInspect, kScore, kExpand, kConvert, kVerify, kTokenize, kTrain, kEval, kReport, kDemo, kList;

std::span<const Command* const> commands() {
  static constexpr std::array kCommands = {&kInspect, &kScore, &kExpand, &kConvert, &kVerify, &kTokenize,
                                           &kTrain,   &kEval,  &kReport, &kDemo,    &kList};
  return kCommands;
}

}  // namespace coppice::cli
