// The MoE layer on a GPU.

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <type_traits>

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

/// Calls f with the type of the layer's SortedExperts, and what launches on the current stream of its GPU.
template <class F>
auto with_experts(const MoeInputs& in, const F& f) {
  const c10::cuda::CUDAGuard guard(in.x_TD.device());
  const OnDevice launch{c10::cuda::getCurrentCUDAStream().stream()};
  if (in.x_TD.scalar_type() == at::kFloat) return f(std::type_identity<SortedExperts<OnDevice, float>>{}, launch);
  return f(std::type_identity<SortedExperts<OnDevice, Bf16>>{}, launch);
}

MoeForward forward(const MoeInputs& in) {
  const bool grouped = fits_grouped_gemm(in) && has_grouped_gemm(in.x_TD.device());
  return with_experts(in, [&]<class Experts>(std::type_identity<Experts>, const OnDevice& launch) {
    return Experts(in, launch, grouped ? ExpertGemms::kGrouped : ExpertGemms::kLoop).forward();
  });
}

MoeGradients backward(const MoeInputs& in, const MoeForward& kept, const at::Tensor& grad_TD) {
  return with_experts(in, [&]<class Experts>(std::type_identity<Experts>, const OnDevice& launch) {
    return Experts(in, launch, kept).backward(kept.hidden_PG, grad_TD);
  });
}

constexpr detail::MoeVariant kExperts{forward, backward};

}  // namespace

const detail::MoeVariant* experts_for(const MoeInputs& in) {
  const auto dtype = in.x_TD.scalar_type();
  return dtype == at::kFloat || dtype == at::kBFloat16 ? &kExperts : nullptr;
}

}  // namespace coppice::kernels::cuda
