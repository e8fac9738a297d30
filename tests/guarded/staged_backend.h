#pragma once

namespace coppice::guarded {

/// Lets ranks communicate tensors of the guarded device: Gloo does it on copies in host memory. As on a real device a
/// collective's result is there after Work::wait() only; before, every byte of it is 0xFF, which is NaN.
///
/// Threads  one, before any world is made.
void install_staged_backend();

}  // namespace coppice::guarded
