#pragma once

#include <c10/util/Exception.h>

#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::nn {

/// Runs `f`; what libtorch throws becomes an Error.
template <class F>
auto at_border(const F& f) {
  try {
    return f();
  } catch (const c10::Error& e) {
    const std::string_view what = e.what_without_backtrace();
    if (what.find("allocate memory") != std::string_view::npos) {
      throw Error(ErrorCode::kIo, cat("out of memory: ", what,
                                      " (try smaller batches, or to keep less: recompute activations, --max-memory)"));
    }
    throw Error(ErrorCode::kInternal, cat("libtorch: ", what, " (a bug in coppice, please report it)"));
  }
}

}  // namespace coppice::nn
