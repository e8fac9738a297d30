// The MoE layer on a GPU.

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "coppice/kernels/cuda/moe_sorted_detail.h"

namespace coppice::kernels::cuda {
namespace {

/// Whether libtorch's grouped GEMM has a kernel for the GPU: Hopper's and Blackwell's large ones.
bool has_grouped_gemm(const c10::Device& device) {
  int major = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index());
  if (error != cudaSuccess) throw Error(ErrorCode::kIo, cat("CUDA: ", cudaGetErrorString(error)));
  return major == 9 || major == 10;
}

/// Calls f with the layer's SortedExperts.
template <class F>
auto with_experts(const MoeInputs& in, const F& f) {
  const c10::cuda::CUDAGuard guard(in.x_TD.device());
  const OnDevice launch{c10::cuda::getCurrentCUDAStream().stream()};
  const bool grouped = fits_grouped_gemm(in) && has_grouped_gemm(in.x_TD.device());
  const auto kind = grouped ? ExpertGemms::kGrouped : ExpertGemms::kLoop;
  if (in.x_TD.scalar_type() == at::kFloat) return f(SortedExperts<OnDevice, float>(in, launch, kind));
  return f(SortedExperts<OnDevice, Bf16>(in, launch, kind));
}

MoeForward forward(const MoeInputs& in) {
  return with_experts(in, [](const auto& experts) { return experts.forward(); });
}

MoeGradients backward(const MoeInputs& in, const at::Tensor& hidden_PG, const at::Tensor& grad_TD) {
  return with_experts(in, [&](const auto& experts) { return experts.backward(hidden_PG, grad_TD); });
}

constexpr detail::MoeVariant kExperts{forward, backward};

}  // namespace

const detail::MoeVariant* experts_for(const MoeInputs& in) {
  const auto dtype = in.x_TD.scalar_type();
  const bool has_kernels = in.form.is_plain() && !in.with_pair_sq && (dtype == at::kFloat || dtype == at::kBFloat16);
  return has_kernels ? &kExperts : nullptr;
}

}  // namespace coppice::kernels::cuda
