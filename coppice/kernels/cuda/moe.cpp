// The MoE layer on a GPU.

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "coppice/kernels/cuda/moe_sorted_detail.h"

namespace coppice::kernels::detail {
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
  if (!in.form.is_plain()) {
    throw Error(
        ErrorCode::kUnsupported,
        "the MoE layer on CUDA does not support experts with biases or clamped SwiGLU (train this family on the CPU)");
  }
  if (in.with_pair_sq) {
    throw Error(ErrorCode::kUnsupported,
                "the MoE layer on CUDA does not compute norms of its experts' outputs (score the model on the CPU)");
  }
  const c10::cuda::CUDAGuard guard(in.x_TD.device());
  const OnDevice launch{c10::cuda::getCurrentCUDAStream().stream()};
  const bool grouped = fits_grouped_gemm(in) && has_grouped_gemm(in.x_TD.device());
  const auto kind = grouped ? ExpertGemms::kGrouped : ExpertGemms::kLoop;
  const auto dtype = in.x_TD.scalar_type();
  if (dtype == at::kFloat) return f(SortedExperts<OnDevice, float>(in, launch, kind));
  if (dtype == at::kBFloat16) return f(SortedExperts<OnDevice, Bf16>(in, launch, kind));
  throw Error(ErrorCode::kUnsupported, cat("the MoE layer was given ", c10::toString(dtype), "; wanted f32 or bf16"));
}

}  // namespace

MoeForward moe_forward_cuda(const MoeInputs& inputs) {
  return with_experts(inputs, [](const auto& experts) { return experts.forward(); });
}

MoeGradients moe_backward_cuda(const MoeInputs& inputs, const at::Tensor& hidden_PG, const at::Tensor& grad_TD) {
  return with_experts(inputs, [&](const auto& experts) { return experts.backward(hidden_PG, grad_TD); });
}

}  // namespace coppice::kernels::detail
