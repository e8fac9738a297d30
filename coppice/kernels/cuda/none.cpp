// In place of the other files of this folder in a build without CUDA.

#include "coppice/base/error.h"
#include "coppice/kernels/moe_detail.h"

namespace coppice::kernels::detail {
namespace {

[[noreturn]] void refuse() {
  throw Error(ErrorCode::kUnsupported,
              "the experts are on a GPU, but this build has no CUDA kernels (build with the preset `cuda`, which "
              "requires nvcc)");
}

}  // namespace

MoeForward moe_forward_cuda(const MoeInputs&) { refuse(); }
MoeGradients moe_backward_cuda(const MoeInputs&, const at::Tensor&, const at::Tensor&) { refuse(); }

}  // namespace coppice::kernels::detail
