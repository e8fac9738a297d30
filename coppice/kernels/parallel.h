#pragma once

#include <cstdint>
#include <functional>

namespace coppice::kernels {

// Which loop over threads: these where libtorch is linked, as they share its threads and their number; `parallel_for`
// (base/thread_pool.h) below, and for work that is not of tensors.

/// Calls task(i) for every i < count, on whichever of libtorch's threads is free next. The first exception is rethrown
/// at the end.
///
/// Threads  at::get_num_threads(). Inside a task every libtorch operation runs on one thread and below autograd,
///          whatever `count`: so what a task computes does not depend on the number of threads.
void parallel_tasks(int64_t count, const std::function<void(int64_t)>& task);

/// Calls range(begin, end) for consecutive ranges of `grain` elements (the last may be shorter), as tasks.
void parallel_ranges(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& range);

/// libtorch's operators and the tasks above use one thread from now on where the calling thread runs them; other threads
/// keep theirs. For work beside other work.
void use_one_thread_here();

}  // namespace coppice::kernels
