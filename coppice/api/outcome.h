#pragma once

#include <string>

#include "coppice/base/json.h"

namespace coppice::api {

/// What a command has to say, in both forms of its output.
struct Outcome {
  Json json;
  std::string text;
  bool ok = true;           ///< false: the check that was asked for did not hold
  bool says_result = true;  ///< false: of several processes of a launcher, another one prints the JSON
};

}  // namespace coppice::api
