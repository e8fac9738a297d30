#pragma once

#include <cstdint>
#include <optional>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"

namespace coppice {

/// The number of threads that --threads gives; all cores if it is not given. Throws Error{kUsage} for 0 and for more
/// than most_threads().
inline size_t thread_count(const std::optional<uint64_t>& threads) {
  if (threads == uint64_t{0}) throw Error(ErrorCode::kUsage, "threads: 0; wanted 1 or more");
  if (threads && *threads > most_threads()) {
    throw Error(ErrorCode::kUsage, cat("threads: ", *threads, "; wanted at most ", most_threads(), " on this machine"));
  }
  return threads ? static_cast<size_t>(*threads) : default_threads();
}

}  // namespace coppice
