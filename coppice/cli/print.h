#pragma once

#include <iostream>

#include "coppice/api/outcome.h"
#include "coppice/base/error.h"

namespace coppice::cli {

/// Prints `outcome` in the form that --json chooses, and returns the exit status.
inline int print(const api::Outcome& outcome, bool json) {
  if (!json) {
    std::cout << outcome.text;
  } else if (outcome.says_result) {
    std::cout << outcome.json.dump(2) << "\n";
  }
  return outcome.ok ? 0 : exit_status(ErrorCode::kCheckFailed);
}

}  // namespace coppice::cli
