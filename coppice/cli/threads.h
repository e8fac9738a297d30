#pragma once

#include <ATen/Parallel.h>

#include "coppice/options/thread_count.h"

namespace coppice::cli {

/// Sets the number of threads that libtorch computes with, as thread_count() reads it.
inline void use_threads(const std::optional<uint64_t>& threads) {
  at::set_num_threads(static_cast<int>(thread_count(threads)));
}

}  // namespace coppice::cli
