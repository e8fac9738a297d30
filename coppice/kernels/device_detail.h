#pragma once

// The one place that asks on which device a tensor is. Every operator of kernels/ has variants in kernels/aten/
// (libtorch's operators, any device and floating-point dtype), most have one in kernels/cpu/, and the MoE layer has one
// in kernels/cuda/. tools/check_layers holds that nothing else in coppice/ asks.

#include <ATen/core/Tensor.h>

#include <type_traits>

namespace coppice::kernels::detail {

/// Set by tests alone: the CPU too computes by libtorch's operators, so that it computes what another device does.
inline bool libtorch_everywhere = false;

/// Set by tests alone: all devices have libtorch's FlashAttention. Theirs checks what it is called with.
inline bool flash_everywhere = false;

/// Whether the tensor's device has libtorch's FlashAttention.
inline bool takes_flash(const at::Tensor& tensor) { return tensor.is_cuda() || flash_everywhere; }

/// Whether the loops of kernels/cpu/ can take the tensor: on the CPU, f32, bf16 or int64.
inline bool takes_loops(const at::Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  return !libtorch_everywhere && tensor.is_cpu() &&
         (dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kLong);
}

/// `cpu` if its loops can take the tensor, else `aten`.
template <class Variant>
Variant* pick(const at::Tensor& tensor, Variant* cpu, std::type_identity_t<Variant>* aten) {
  return takes_loops(tensor) ? cpu : aten;
}

/// `cuda` on a GPU, if this build has a kernel for the work (it is null otherwise); in all other cases as above.
template <class Variant>
Variant* pick(const at::Tensor& tensor, Variant* cpu, std::type_identity_t<Variant>* cuda,
              std::type_identity_t<Variant>* aten) {
  return tensor.is_cuda() && cuda != nullptr ? cuda : pick(tensor, cpu, aten);
}

}  // namespace coppice::kernels::detail
