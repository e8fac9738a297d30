#pragma once

#include <cstddef>
#include <functional>

namespace coppice {

/// The default number of threads: the number of cores that this process may use.
size_t default_threads();

/// The largest number of threads accepted; more would only wait for each other.
size_t most_threads();

/// Calls task(i) for every i < count on up to `threads` threads, including the caller's; tasks start in the order of i.
/// After an exception no new tasks start; when the running ones have ended, the exception of the lowest i is rethrown.
///
/// Threads  tasks must not touch the same data; nested calls are fine.
void parallel_for(size_t count, size_t threads, const std::function<void(size_t)>& task);

}  // namespace coppice
