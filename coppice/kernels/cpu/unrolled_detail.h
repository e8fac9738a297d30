#pragma once

// Loops over registers. Include it where the target is set and after <utility>, so that its functions have that target
// too.

namespace coppice::kernels::cpu {
namespace {

/// Calls f(0), f(1), ... f(kCount - 1) with constants, so that an array which f indexes stays in registers. (GCC unrolls
/// a loop too late for that: it would write every sum of a block to the stack and read it again.)
template <int64_t kCount, class F>
[[gnu::always_inline]] inline void unrolled(const F& f) {
  [&]<int64_t... i>(std::integer_sequence<int64_t, i...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int64_t, i>{}), ...);
  }(std::make_integer_sequence<int64_t, kCount>{});
}

}  // namespace
}  // namespace coppice::kernels::cpu
