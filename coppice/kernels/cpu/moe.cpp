// Which of the CPU's three ways computes a MoE layer.

#include "coppice/base/check.h"
#include "coppice/kernels/cpu/moe_rows_detail.h"
#include "coppice/kernels/cpu/processor_detail.h"
#include "coppice/kernels/moe_detail.h"

namespace coppice::kernels::cpu {
namespace {

const detail::MoeVariant& way_for(const detail::MoeInputs& in) {
  const ExpertsShape shape{.pairs = in.index_TK.numel(),
                           .experts = in.w_down_EDF.size(0),
                           .dim = in.w_down_EDF.size(1),
                           .width = in.w_down_EDF.size(2),
                           .is_plain = in.form.is_plain()};
  const Path path = pick_experts(this_processor(), shape, in.x_TD.scalar_type());
  switch (path) {
    case Path::kWords: return kExpertsByWords;
    case Path::kTiles: return kExpertsByTiles;
    case Path::kLanes:  // its products are small
    case Path::kLibtorch: return kExpertsByGemms;
  }
  COPPICE_CHECK(false, "path ", static_cast<int>(path));
}

detail::MoeForward forward(const detail::MoeInputs& in) { return way_for(in).forward(in); }

detail::MoeGradients backward(const detail::MoeInputs& in, const detail::MoeForward& kept, const at::Tensor& grad_TD) {
  return way_for(in).backward(in, kept, grad_TD);
}

}  // namespace

const detail::MoeVariant kExperts{forward, backward};

}  // namespace coppice::kernels::cpu
