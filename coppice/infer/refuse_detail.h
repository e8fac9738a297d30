#pragma once

#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::infer::detail {

/// The four rules of an inference (infer.h).
enum class Rule : uint8_t { kCount = 1, kExperts = 2, kRouter = 3, kExplained = 4 };

[[noreturn]] inline void refuse(Rule rule, std::string_view found) {
  throw Error(ErrorCode::kUnsupported, cat("the family cannot be inferred: ", found, " (rule ", static_cast<int>(rule),
                                           "; describe the family in a file and give it with --family-file)"));
}

}  // namespace coppice::infer::detail
