#pragma once

// What a router does with scores and choices, apart from its weights. T tokens, N experts (or lineages), E experts, K
// choices per token.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice::kernels {

/// Which of N candidates a token takes.
struct TopK {
  int64_t top_k = 1;
  int64_t num_groups = 1, top_groups = 1;  ///< only candidates of the best groups; groups are neighbours, of equal size
  bool best_two = false;                   ///< a group's score is the sum of its two best candidates, not its best
};

/// The K best of every row in falling order of score; ties, also between groups, go to the lower index.
///
/// Shapes   score_TN f32, without NaN; returns [T, K] int64, contiguous.
/// Memory   off the CPU, the sorted scores with their indices, [T, N].
/// Threads  the choice does not depend on the number of threads. On a GPU nobody waits.
at::Tensor choose_top_k(const at::Tensor& score_TN, const TopK& choice);

/// How a token's gates come from the numbers of its experts.
struct GateForm {
  bool softmax = false;      ///< over the chosen ones
  bool renormalise = false;  ///< divided by epsilon + their sum
  double epsilon = 0;
  double scaling = 1;  ///< then times this
};

/// The gates of the chosen experts; differentiable by the numbers.
///
/// Shapes   value_TE f32 or f64; index_TK int64, each in [0, E); returns [T, K] in the dtype of value_TE.
/// Memory   saves two numbers for each chosen expert (off the CPU up to six); the gradient is [T, E].
/// Threads  the bits do not depend on the number of threads.
at::Tensor gates(const at::Tensor& value_TE, const at::Tensor& index_TK, const GateForm& form);

/// Tokens per expert.
///
/// Shapes   index_TK int64; returns [E] int64.
/// Throws   for an index that is no expert: Error{kInternal} on the CPU, else c10::Error from libtorch's operator.
at::Tensor expert_counts(const at::Tensor& index_TK, int64_t num_experts);

/// Sum over tokens of each expert's gate / divisor, added in f64 in the order of tokens; without gradient.
///
/// Shapes   index_TK int64, each in [0, E); gate_TK f32; returns [E] f64.
at::Tensor gate_mass(const at::Tensor& index_TK, const at::Tensor& gate_TK, int64_t num_experts, double divisor = 1);

}  // namespace coppice::kernels
