#include "coppice/nn/parameter.h"

#include "coppice/base/check.h"

namespace coppice::nn {

using families::Role;

int64_t Parameter::Slice::count() const {
  int64_t n = 1;
  for (const int64_t size : sizes) n *= size;
  return n;
}

at::Tensor Parameter::Slice::of(const at::Tensor& tensor) const {
  COPPICE_CHECK(tensor.is_contiguous(), slot.name);
  return tensor.as_strided(sizes, strides, tensor.storage_offset() + begin);
}

std::vector<Parameter::ExpertMatrix> Parameter::expert_matrices() const {
  std::vector<ExpertMatrix> out;
  if (!is_experts()) return out;
  const bool fused = role == Role::kExpertGate || role == Role::kExpertGateBias;
  const int64_t parts = fused ? 2 : 1, rows = value.size(1) / parts, cols = value.dim() == 3 ? value.size(2) : 1;
  const Role up = role == Role::kExpertGate ? Role::kExpertUp : Role::kExpertUpBias;
  COPPICE_CHECK(value.size(0) == std::ssize(experts));
  for (int64_t i = 0; i < value.size(0) * parts; ++i) {
    out.push_back({i % parts == 0 ? role : up, experts[static_cast<size_t>(i / parts)], i * rows * cols, rows, cols});
  }
  return out;
}

bool Parameter::decays() const {
  return !families::is_bias(role) && (is_experts() || slices.front().slot.shape.size() > 1);
}

}  // namespace coppice::nn
