#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::score {

/// Checks that losses are finite without waiting for the device after each.
class FiniteLosses {
 public:
  /// Takes the loss of a pass; reads the sum of those since the last reading at every 16th.
  ///
  /// Throws   Error{kNonFinite} if one of them is not finite.
  void add(const at::Tensor& loss);
  /// Reads what has been added since. Throws as `add`.
  void finish();

 private:
  at::Tensor sum_;
  int64_t count_ = 0;
};

}  // namespace coppice::score
