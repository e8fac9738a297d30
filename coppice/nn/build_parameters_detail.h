#pragma once

#include <map>
#include <vector>

#include "coppice/nn/decoder.h"

namespace coppice::nn::detail {

/// The role of the parameter that a tensor of `role` is a part of: gate and up rows are in one.
families::Role parameter_role(families::Role role);

struct BuiltParameters {
  std::vector<Parameter> parameters;             ///< in the table's order
  std::map<int64_t, at::Tensor> selection_bias;  ///< by layer
};

/// The tensors of `slots` on `device`, filled and checked: all of a model with this configuration, or all of a layer, or
/// tensors outside layers; of the experts' those that this rank has. `keep` as for Decoder.
///
/// Memory   besides the result, one tensor on the host if the device is another, and with `keep` one master.
/// Ranks    the parameters and their order are the same on all ranks.
/// Throws   Error{kNonFinite} naming a tensor with NaN or infinity.
BuiltParameters build_parameters(const families::ModelConfig& config, ComputeDtype dtype, at::Device device,
                                 const TensorFill& fill, const Division& division,
                                 std::vector<families::TensorSlot> slots, const KeepMasters& keep = {});

}  // namespace coppice::nn::detail
