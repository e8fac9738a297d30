#pragma once

#include <map>
#include <utility>
#include <vector>

#include "coppice/nn/decoder.h"

namespace coppice::nn {

/// Makes parameters of a model one by one, so that an expansion never has two models in memory.
class ParameterBuilder {
 public:
  ParameterBuilder(const families::ModelConfig& config, ComputeDtype dtype, at::Device device, Division division = {});

  /// The parameter with the role and layer of one of a Decoder of this configuration and division.
  ///
  /// Memory   besides the result, one tensor on the host if the device is another.
  /// Throws   Error{kNonFinite} naming the first tensor with NaN or infinity; Error{kInternal} if there is none.
  Parameter build(families::Role role, int64_t layer, const TensorFill& fill) const;

 private:
  families::ModelConfig config_;
  ComputeDtype dtype_;
  at::Device device_;
  Division division_;
  std::map<std::pair<families::Role, int64_t>, std::vector<families::TensorSlot>> slots_;
};

}  // namespace coppice::nn
