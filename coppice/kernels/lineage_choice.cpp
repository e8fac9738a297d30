#include "coppice/kernels/lineage_choice.h"

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/routing_detail.h"

namespace coppice::kernels {

at::Tensor tokens_held(const at::Tensor& scores_TE, uint64_t first_token, uint64_t seed, double share) {
  return detail::pick(scores_TE, cpu::tokens_held, aten::tokens_held)(scores_TE, first_token, seed, share);
}

LineageChoice best_children(const at::Tensor& choice_TE, const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const at::Tensor& child_LR, uint64_t seed, uint64_t first_token) {
  COPPICE_CHECK(choice_TE.sizes() == logits_TE.sizes() && child_LR.dim() == 2);
  return detail::pick(choice_TE, cpu::best_children, aten::best_children)(
      choice_TE.contiguous(), logits_TE.contiguous(), bias_E, child_LR.contiguous(), seed, first_token);
}

}  // namespace coppice::kernels
