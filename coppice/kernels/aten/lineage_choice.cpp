#include <ATen/ops/arange.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/gather.h>

#include <limits>

#include "coppice/kernels/routing_detail.h"

namespace coppice::kernels::aten {
namespace {

// Unsigned integers in tensors of int64.
int64_t bits(uint64_t value) { return static_cast<int64_t>(value); }
at::Tensor shifted_right(const at::Tensor& x, int count) {
  return x.__rshift__(count).bitwise_and(bits(~uint64_t{0} >> count));
}

/// splitmix64 of base/rng.h, of every element.
at::Tensor hashed(const at::Tensor& x) {
  auto z = x + bits(0x9e3779b97f4a7c15);
  z = z.bitwise_xor(shifted_right(z, 30)) * bits(0xbf58476d1ce4e5b9);
  z = z.bitwise_xor(shifted_right(z, 27)) * bits(0x94d049bb133111eb);
  return z.bitwise_xor(shifted_right(z, 31));
}

at::Tensor token_hashes(int64_t tokens, uint64_t first_token, uint64_t seed, at::Device device) {
  const auto number_T = at::arange(tokens, at::TensorOptions().dtype(at::kLong).device(device)) + bits(first_token);
  return hashed(hashed(number_T).bitwise_xor(bits(seed)));
}

/// hash % count, of unsigned hashes and counts below 2^31.
at::Tensor unsigned_remainder(const at::Tensor& hash, const at::Tensor& count) {
  return (shifted_right(hash, 1).remainder(count) * 2 + hash.bitwise_and(1)).remainder(count);
}

}  // namespace

at::Tensor tokens_held(const at::Tensor& scores_TE, uint64_t first_token, uint64_t seed, double share) {
  const auto hash_T = token_hashes(scores_TE.size(0), first_token, seed, scores_TE.device());
  return (shifted_right(hash_T, detail::kHashShift).to(at::kDouble) * 0x1p-53).lt(share);
}

LineageChoice best_children(const at::Tensor& choice_TE, const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const at::Tensor& child_LR, uint64_t seed, uint64_t first_token) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const int64_t tokens = choice_TE.size(0), lineages = child_LR.size(0), most = child_LR.size(1);
  const auto is_child_LR = child_LR.ge(0);
  const auto index = child_LR.clamp_min(0).view({-1});
  const auto by_lineage = [&](const at::Tensor& value_TE) {
    return value_TE.index_select(1, index).view({tokens, lineages, most});
  };
  const auto choice_TLR = by_lineage(choice_TE).masked_fill(is_child_LR.logical_not(), kNever);
  const auto logit_TLR = by_lineage(logits_TE);
  const auto best_TL1 = at::argmax(choice_TLR, 2, /*keepdim=*/true);
  const auto best_logit_TL1 = logit_TLR.gather(2, best_TL1);
  auto ties_TLR =
      (logit_TLR - best_logit_TL1).abs().le(best_logit_TL1.abs().clamp_min(1) * static_cast<double>(detail::kTie));
  if (bias_E.defined()) {
    const auto bias_TLR = bias_E.index_select(0, index).view({1, lineages, most}).expand({tokens, lineages, most});
    ties_TLR = ties_TLR.logical_and(bias_TLR.eq(bias_TLR.gather(2, best_TL1)));
  }
  // The best one also ties with itself if it is NaN, which the loss will show.
  ties_TLR = ties_TLR.logical_and(is_child_LR).scatter(2, best_TL1, true);
  const auto lineage_L = at::arange(lineages, child_LR.options());
  const auto hash_TL = hashed(token_hashes(tokens, first_token, seed, choice_TE.device()).unsqueeze(1) + lineage_L);
  const auto left_TL = unsigned_remainder(hash_TL, ties_TLR.sum(2));
  const auto rank_TLR = ties_TLR.cumsum(2);
  const auto picked_TL1 =
      at::argmax(rank_TLR.eq((left_TL + 1).unsqueeze(2)).logical_and(ties_TLR).to(at::kByte), 2, /*keepdim=*/true);
  return {choice_TLR.gather(2, picked_TL1).squeeze(2),
          child_LR.expand({tokens, lineages, most}).gather(2, picked_TL1).squeeze(2)};
}

}  // namespace coppice::kernels::aten
