#pragma once

#include <cstdint>
#include <functional>

namespace coppice::kernels {

// Where libtorch is linked, loops over tensors use these functions, because they share libtorch's threads and their number.
// Below that, and for work that is not on tensors, use `parallel_for` of base/thread_pool.h.

/// Calls task(i) for every i < count, on the next free thread of libtorch's. The first exception is rethrown at the
/// end.
///
/// Threads  at::get_num_threads(). Inside a task every libtorch operation runs on one thread and without autograd,
///          whatever `count`, so the result of a task does not depend on the number of threads.
void parallel_tasks(int64_t count, const std::function<void(int64_t)>& task);

/// Calls range(begin, end) for consecutive ranges of `grain` elements (the last may be shorter), as tasks.
void parallel_ranges(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& range);

/// From now on libtorch's operators and the tasks above use one thread when the calling thread runs them; other threads
/// are not affected. For several jobs that run at the same time.
void use_one_thread_here();

}  // namespace coppice::kernels
