#pragma once

#include <c10/util/Exception.h>

#include <new>
#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::nn {

[[noreturn]] inline void throw_out_of_memory(std::string_view what) {
  throw Error(ErrorCode::kIo,
              cat("out of memory: ", what, " (use smaller batches, recompute activations, or lower --max-memory)"));
}

/// Runs `f`; exceptions of libtorch and failed allocations become an Error.
template <class F>
auto at_border(const F& f) {
  try {
    return f();
  } catch (const c10::Error& e) {
    const std::string_view what = e.what_without_backtrace();
    if (what.find("allocate memory") != std::string_view::npos ||
        what.find("out of memory") != std::string_view::npos) {
      throw_out_of_memory(what);
    }
    throw Error(ErrorCode::kInternal, cat("libtorch: ", what, " (a bug in coppice, please report it)"));
  } catch (const std::bad_alloc&) {
    throw_out_of_memory("an allocation failed");
  }
}

}  // namespace coppice::nn
