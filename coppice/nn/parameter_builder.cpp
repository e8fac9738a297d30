#include "coppice/nn/parameter_builder.h"

#include "coppice/base/check.h"
#include "coppice/nn/build_parameters_detail.h"

namespace coppice::nn {

ParameterBuilder::ParameterBuilder(const families::ModelConfig& config, ComputeDtype dtype, at::Device device,
                                   Division division)
    : config_(config), dtype_(dtype), device_(device), division_(std::move(division)) {
  for (auto& slot : families::expected_tensors(config_)) {
    slots_[{detail::parameter_role(slot.role()), slot.layer}].push_back(std::move(slot));
  }
}

Parameter ParameterBuilder::build(families::Role role, int64_t layer, const TensorFill& fill) const {
  auto built = detail::build_parameters(config_, dtype_, device_, fill, division_, slots_.at({role, layer}));
  COPPICE_CHECK(built.parameters.size() == 1, "role ", static_cast<int>(role), " of layer ", layer);
  return std::move(built.parameters.front());
}

}  // namespace coppice::nn
