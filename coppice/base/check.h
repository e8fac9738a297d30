#pragma once

#include "coppice/base/error.h"
#include "coppice/base/text.h"

/// Checks a condition that only a bug in coppice can break; no user input reaches it. Also active in release builds.
///
/// Throws   Error{kInternal} with file, line and the condition.
#define COPPICE_CHECK(condition, ...)                                                                                  \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      throw ::coppice::Error(                                                                                          \
          ::coppice::ErrorCode::kInternal,                                                                             \
          ::coppice::cat(__FILE__, ":", __LINE__, ": ", #condition, " does not hold" __VA_OPT__(, ": ", ) __VA_ARGS__, \
                         " (a bug in coppice, please report it)"));                                                    \
    }                                                                                                                  \
  } while (false)
