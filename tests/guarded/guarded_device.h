#pragma once

// A fake accelerator for tests: devices "privateuseone:0" and "privateuseone:1" of libtorch. The host cannot read the
// addresses of their tensors; their operators are the CPU's and give the same bits. A host access, a stale pointer or
// a mix of devices ends the test with a sentence that names the last operator.

#include <ATen/core/Tensor.h>

namespace coppice::guarded {

inline constexpr int kDevices = 2;

/// Call once at the start of main(): a fault in the memory of a device prints what was touched and by whom, and the
/// process dies of SIGSEGV as usual.
void install_fault_handler();

/// The same memory as a CPU tensor, for a test's own kernels.
at::Tensor as_cpu(const at::Tensor& tensor);

struct Counters {
  long fallbacks = 0;       ///< operators that ran
  long copied_outputs = 0;  ///< results that an operator allocated anew
  long allocations = 0;
  long copies_to_host = 0;  ///< transfers for which a real device would be waited for
};
Counters counters();

/// Bytes of privateuseone:0 as its allocator tells them to everybody (nn/device_memory.h): now, and the most since
/// reset_peak().
int64_t live_bytes();
int64_t peak_bytes();
void reset_peak();

}  // namespace coppice::guarded
