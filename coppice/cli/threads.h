#pragma once

#include <ATen/Parallel.h>

#include <cstdint>
#include <optional>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"

namespace coppice::cli {

/// Sets the number of threads that libtorch computes with; all cores where the user gave none. Throws Error{kUsage} for
/// 0.
inline void use_threads(const std::optional<uint64_t>& threads) {
  if (threads == uint64_t{0}) throw Error(ErrorCode::kUsage, "threads: 0; wanted 1 or more");
  at::set_num_threads(static_cast<int>(threads.value_or(default_threads())));
}

}  // namespace coppice::cli
