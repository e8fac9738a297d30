#pragma once

#include <map>
#include <vector>

#include "coppice/nn/decoder.h"

namespace coppice::nn::detail {

struct BuiltParameters {
  std::vector<Parameter> parameters;             ///< in the table's order
  std::map<int64_t, at::Tensor> selection_bias;  ///< by layer
};

/// Every tensor that a model of this configuration has, filled and checked.
///
/// Throws   Error{kNonFinite} naming the first tensor that holds NaN or infinity.
BuiltParameters build_parameters(const families::ModelConfig& config, ComputeDtype dtype, const TensorFill& fill);

/// The same of some tensors alone: all of a layer, or such that no layer has.
BuiltParameters build_parameters(const families::ModelConfig& config, ComputeDtype dtype, const TensorFill& fill,
                                 std::vector<families::TensorSlot> slots);

}  // namespace coppice::nn::detail
