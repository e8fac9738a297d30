#pragma once

#include "coppice/base/error.h"
#include "coppice/base/text.h"

/// States what must hold unless coppice has a bug. Stays on in release; unreachable from user input.
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
