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

/// On Intel's processors MKL's f32 products depend on where in memory their matrices lie, and so on the thread that
/// allocated them, unless this is set before its first product. Who has set it otherwise keeps that. (Elsewhere the
/// setting would choose a slow path, and products do not depend on it.)
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

  // A team even for one task: MKL and oneDNN use one thread only where OpenMP says that a parallel region is active.
  // No num_threads clause: libgomp would end and restart its threads whenever the number changes.
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
  (void)at::get_num_threads();  // takes the process's number for this thread, and would do so later otherwise
  omp_set_num_threads(1);       // of this thread alone; at::set_num_threads is of the process
}

}  // namespace coppice::kernels
