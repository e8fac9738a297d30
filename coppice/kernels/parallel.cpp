#include "coppice/kernels/parallel.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>

namespace coppice::kernels {
namespace {

/// On Intel processors, MKL's f32 products depend on the memory addresses of their matrices, and so on the thread that
/// allocated them, unless this variable is set before the first product. A value set by the user is kept. (On other
/// processors the setting would choose a slow path, and products do not depend on addresses.)
[[maybe_unused]] const bool kSameProductsEverywhere = [] {
  if (__builtin_cpu_is("intel")) ::setenv("MKL_CBWR", "AUTO,STRICT", 0);
  return true;
}();

}  // namespace

void parallel_tasks(int64_t count, const std::function<void(int64_t)>& task) {
  const auto run_all = [&](std::atomic<int64_t>& next) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (int64_t i = next++; i < count; i = next++) task(i);
  };
  std::atomic<int64_t> next = 0;
  if (at::get_num_threads() == 1 || omp_in_parallel()) return run_all(next);

  // Opens a parallel region even for one task, because MKL and oneDNN use one thread only inside an active OpenMP
  // region. There is no num_threads clause, because libgomp would end and restart its threads whenever the number
  // changes.
  std::exception_ptr failure;
  std::atomic<bool> failed = false;
#pragma omp parallel
  {
    try {
      run_all(next);
    } catch (...) {
      next = count;
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

void parallel_ranges(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& range) {
  parallel_tasks((count + grain - 1) / grain, [&](int64_t i) { range(i * grain, std::min(count, (i + 1) * grain)); });
}

void use_one_thread_here() {
  (void)at::get_num_threads();  // initialises this thread with the process's number, which would otherwise happen later
  omp_set_num_threads(1);       // only for this thread; at::set_num_threads is for the process
}

}  // namespace coppice::kernels
