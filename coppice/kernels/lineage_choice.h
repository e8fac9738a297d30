#pragma once

// What lineage-unique top-K (nn/lineage.h) does for every token: whether the rule holds for it, and which child stands
// for each lineage. T tokens, E experts, L lineages, R the most experts of one lineage.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice::kernels {

/// The tokens that the rule holds for, chosen by a hash of (number of the token, seed); token 0 has number
/// `first_token`.
///
/// Shapes   scores_TE only says how many tokens there are and on which device; returns [T] bool.
/// Units    share of all tokens, 0 to 1.
at::Tensor tokens_held(const at::Tensor& scores_TE, uint64_t first_token, uint64_t seed, double share);

struct LineageChoice {
  at::Tensor score_TL;  ///< choice score of each lineage's child
  at::Tensor child_TL;  ///< int64, the child that represents the lineage
};

/// For every token the child of each lineage with the highest score, or one of those that tie with it: same selection
/// bias, logits within 1e-5 * max(1, |z|). Among those a hash of (number of the token, seed, lineage) chooses.
///
/// Shapes   choice_TE and logits_TE f32; bias_E f32 or undefined; child_LR int64, rising, filled up with -1.
/// Threads  at::get_num_threads(). On other devices than the CPU: libtorch's operators; the same children.
LineageChoice best_children(const at::Tensor& choice_TE, const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const at::Tensor& child_LR, uint64_t seed, uint64_t first_token);

}  // namespace coppice::kernels
