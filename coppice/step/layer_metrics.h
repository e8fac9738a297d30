#pragma once

// Summary metrics of one MoE layer in a step, independent of the number of experts. T tokens, E experts, K choices.
// Counts and choices are tensors of the host, as in StepReport.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "coppice/nn/parameter.h"

namespace coppice::step {

/// The largest load relative to an even load: max(count) / mean(count) - 1; 0 without tokens.
///
/// Source   MaxVio of arXiv:2408.15664.
double max_violation(const at::Tensor& count_E);

/// The entropy of the shares of load divided by log E: 1 if all are equal, 0 if one expert has all tokens; 1 without
/// tokens.
double load_entropy(const at::Tensor& count_E);

/// The share of experts with a count of 0.
double dead_share(const at::Tensor& count_E);

/// Different parents among the experts that each token chose, summed over tokens.
struct SiblingCounts {
  int64_t different = 0, tokens = 0;
};
/// Shapes   index_TK int64; parents [E].
SiblingCounts count_parents(const at::Tensor& index_TK, std::span<const uint32_t> parents);

/// The number of different parents among the chosen experts, mean over tokens.
///
/// Shapes   index_TK int64; parents [E].
double effective_top_k(const at::Tensor& index_TK, std::span<const uint32_t> parents);

/// The tokens of a batch by rising id, those of equal ids in their order; for all layers of a step.
class TokensById {
 public:
  /// Shapes   token_T int64.
  explicit TokensById(const at::Tensor& token_T);

  struct Token {
    int64_t id, position;
  };
  std::span<const Token> tokens() const { return tokens_; }

 private:
  std::vector<Token> tokens_;
};

/// The ids of each expert's tokens, rising.
using IdsByExpert = std::vector<std::vector<int64_t>>;
/// Shapes   index_TK int64.
IdsByExpert ids_by_expert(const at::Tensor& index_TK, const TokensById& tokens, size_t num_experts);

/// Summed over the copies that, as their parent's first child, got tokens.
struct SiblingOverlap {
  double sum = 0;
  int64_t pairs = 0;
};
SiblingOverlap compare_siblings(const IdsByExpert& ids, std::span<const uint32_t> parents);

/// How similar the tokens of siblings are: the mean over copies of the sum over ids v of min(p(v), q(v)), where p and q
/// are the shares of id v in the tokens of the copy and of its parent's first child. 1: the same distribution, 0:
/// disjoint. No value if no pair of siblings got tokens.
///
/// Shapes   index_TK int64.
std::optional<double> routing_overlap(const at::Tensor& index_TK, const TokensById& tokens,
                                      std::span<const uint32_t> parents);

/// The weights of one expert, tensor by tensor.
using ExpertWeights = std::vector<std::span<const float>>;

/// Cosine between all weights of two experts, whose tensors are alike.
double weight_cosine(const ExpertWeights& a, const ExpertWeights& b);

/// Mean over copies of the cosine between all weights of the copy and those of its parent's first child; no value
/// without copies.
///
/// Shapes   the f32 masters of the layer's two parameters of experts, all experts one after another; those of a device
///          are copied to the host.
/// Threads  at::get_num_threads(); same bits for any number of them.
std::optional<double> sibling_cosine(const at::Tensor& fc1, const at::Tensor& fc2, std::span<const uint32_t> parents);

}  // namespace coppice::step
