#pragma once

#include <cstddef>
#include <functional>

namespace coppice {

/// Number of threads to use when the user gave none: the cores this process may run on.
size_t default_threads();

/// Above it, threads would only wait for each other.
size_t most_threads();

/// Calls task(i) for every i < count on up to `threads` threads, the caller among them, in rising order of start.
/// The first exception (of the lowest index that threw) is rethrown here after all running tasks ended; no new ones
/// start.
///
/// Threads  tasks must not touch the same data; nested calls are fine.
void parallel_for(size_t count, size_t threads, const std::function<void(size_t)>& task);

}  // namespace coppice
