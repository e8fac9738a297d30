#include "coppice/nn/lineage.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/index_add.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"
#include "coppice/kernels/parallel.h"
#include "coppice/nn/router_detail.h"

namespace coppice::nn {
namespace {

using families::GateFunction;

constexpr int64_t kTokensPerTask = 256;
constexpr float kTie = 1e-5f;  // relative to a logit, because some products of equal rows differ in the last bits

/// 1 for tokens with lineage-unique routing, 0 for the others.
///
/// Shapes   returns [T] f32.
at::Tensor tokens_held(const LineageRouting& lineage, uint64_t first_token, int64_t tokens) {
  const auto held_T = at::empty({tokens}, at::kFloat);
  auto* const held = held_T.mutable_data_ptr<float>();
  for (int64_t t = 0; t < tokens; ++t) {
    const uint64_t hash = splitmix64(lineage.seed ^ splitmix64(first_token + static_cast<uint64_t>(t)));
    held[t] = static_cast<double>(hash >> 11) * 0x1p-53 < lineage.share ? 1.0f : 0.0f;
  }
  return held_T;
}

/// The experts of each lineage in rising order.
std::vector<std::vector<int64_t>> children_of(const std::vector<uint32_t>& parents, int64_t num_lineages) {
  std::vector<std::vector<int64_t>> children(static_cast<size_t>(num_lineages));
  for (size_t e = 0; e < parents.size(); ++e) children.at(parents[e]).push_back(static_cast<int64_t>(e));
  return children;
}

[[noreturn]] void refuse(ErrorCode code, int64_t layer, const std::string& problem) {
  throw Error(code, cat("the lineage of layer ", layer, ": ", problem));
}

/// The parents of each expert of `layer`.
///
/// Throws   Error{kFormat} if the lineage does not fit this model; Error{kUnsupported} if a lineage has experts in more
///          than one router group.
const std::vector<uint32_t>& parents_of(const LineageRouting& lineage, int64_t layer, int64_t experts, int64_t top_k,
                                        int64_t groups) {
  const auto found = lineage.parents.find(layer);
  if (found == lineage.parents.end())
    refuse(ErrorCode::kFormat, layer, "it has no parents (the lineage does not belong to this model)");
  const std::vector<uint32_t>& parents = found->second;
  const int64_t lineages = lineage.num_lineages;
  if (static_cast<int64_t>(parents.size()) != experts || lineages < top_k || lineages % groups != 0) {
    refuse(ErrorCode::kFormat, layer,
           cat(parents.size(), " experts of ", lineages, " parents; wanted ", experts, " of at least ", top_k, " in ",
               groups, " groups (the lineage does not belong to this model)"));
  }
  std::vector<bool> has_child(static_cast<size_t>(lineages), false);
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t parent = parents[static_cast<size_t>(e)];
    if (parent >= lineages) refuse(ErrorCode::kFormat, layer, cat("parent ", parent, " of ", lineages));
    has_child[static_cast<size_t>(parent)] = true;
    if (e / (experts / groups) == parent / (lineages / groups)) continue;
    refuse(ErrorCode::kUnsupported, layer,
           cat("expert ", e,
               " is in another router group than its parent, so lineage-unique routing is not possible (set "
               "handover.policy none)"));
  }
  const auto childless = std::ranges::find(has_child, false);
  if (childless != has_child.end()) {
    refuse(ErrorCode::kFormat, layer, cat("parent ", childless - has_child.begin(), " has no child"));
  }
  return parents;
}

/// log r of every expert, where r is the number of experts with its parent, including itself.
at::Tensor log_siblings(const std::vector<std::vector<int64_t>>& children, int64_t experts) {
  const auto out_E = at::zeros({experts}, at::kFloat);
  auto* const out = out_E.mutable_data_ptr<float>();
  for (const auto& siblings : children) {
    for (const int64_t e : siblings) out[e] = std::log(static_cast<float>(siblings.size()));
  }
  return out_E;
}

/// The best child of a lineage, or one of the children that tie with it.
int64_t pick_child(const std::vector<int64_t>& siblings, const float* choice, const float* logit, const float* bias,
                   uint64_t hash) {
  const int64_t best = *std::ranges::max_element(siblings, [&](int64_t a, int64_t b) { return choice[a] < choice[b]; });
  const float margin = kTie * std::max(1.0f, std::abs(logit[best]));
  const auto ties = [&](int64_t e) {  // the best one also ties with itself if it is NaN, which the loss will show
    return e == best || (std::abs(logit[e] - logit[best]) <= margin && (bias == nullptr || bias[e] == bias[best]));
  };
  auto left = hash % static_cast<uint64_t>(std::ranges::count_if(siblings, ties));
  for (const int64_t e : siblings) {
    if (ties(e) && left-- == 0) return e;
  }
  COPPICE_CHECK(false, "no child ties with the best");
}

struct LineageChoice {
  at::Tensor score_TL;  ///< score of each lineage's best child
  at::Tensor child_TL;  ///< int64, the child that represents the lineage
};

LineageChoice best_children(const at::Tensor& choice_TE, const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const std::vector<std::vector<int64_t>>& children, uint64_t seed, uint64_t first_token) {
  const int64_t tokens = choice_TE.size(0), experts = choice_TE.size(1);
  const auto lineages = static_cast<int64_t>(children.size());
  const LineageChoice out{at::empty({tokens, lineages}, choice_TE.options()), at::empty({tokens, lineages}, at::kLong)};
  const auto* const choice = choice_TE.const_data_ptr<float>();
  const auto* const logit = logits_TE.const_data_ptr<float>();
  const auto* const bias = bias_E.defined() ? bias_E.const_data_ptr<float>() : nullptr;
  auto* const score = out.score_TL.mutable_data_ptr<float>();
  auto* const child = out.child_TL.mutable_data_ptr<int64_t>();
  kernels::parallel_ranges(tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const uint64_t hash = splitmix64(seed ^ splitmix64(first_token + static_cast<uint64_t>(t)));
      const float* const row = choice + t * experts;
      for (int64_t l = 0; l < lineages; ++l) {
        const auto& siblings = children[static_cast<size_t>(l)];
        const int64_t best =
            pick_child(siblings, row, logit + t * experts, bias, splitmix64(hash + static_cast<uint64_t>(l)));
        child[t * lineages + l] = best;
        score[t * lineages + l] = row[best];
      }
    }
  });
  return out;
}

}  // namespace

at::Tensor by_lineage(const at::Tensor& value_E, const std::vector<uint32_t>& parents, int64_t num_lineages) {
  const auto index_E = at::empty({static_cast<int64_t>(parents.size())}, at::kLong);
  std::ranges::copy(parents, index_E.mutable_data_ptr<int64_t>());
  return at::index_add(at::zeros({num_lineages}, value_E.options()), 0, index_E, value_E);
}

Routed route_by_lineage(const at::Tensor& logits_TE, const at::Tensor& selection_bias_E,
                        const families::Routing& routing, int64_t top_k, const LineageRouting& lineage, int64_t layer,
                        uint64_t first_token) {
  const auto& parents = parents_of(lineage, layer, logits_TE.size(1), top_k, routing.num_groups);
  const auto children = children_of(parents, lineage.num_lineages);
  const auto held_T = tokens_held(lineage, first_token, logits_TE.size(0));
  const auto log_r_TE = at::outer(held_T, log_siblings(children, logits_TE.size(1)));
  const bool by_logits = routing.gate == GateFunction::kTopKSoftmax;

  Routed out;
  out.logits_TE = logits_TE - log_r_TE;
  at::Tensor parent_TE = logits_TE;  // the scores that gates are computed from: the parent's for held tokens
  if (routing.gate == GateFunction::kSigmoidTopK) {
    parent_TE = at::sigmoid(logits_TE);
    out.score_TE = parent_TE * at::exp(-log_r_TE);
  } else {
    out.score_TE = at::softmax(out.logits_TE, -1);
    if (!by_logits) parent_TE = out.score_TE * at::exp(log_r_TE);
  }
  out.choice_TE = parent_TE.detach();
  if (selection_bias_E.defined()) out.choice_TE = out.choice_TE + selection_bias_E;

  const auto best = best_children(out.choice_TE.contiguous(), logits_TE.detach().contiguous(), selection_bias_E,
                                  children, lineage.seed ^ splitmix64(static_cast<uint64_t>(layer)), first_token);
  out.index_TK = at::gather(best.child_TL, 1, detail::choose(best.score_TL, routing, top_k));
  if (lineage.share < 1) {
    const auto plain_TK = detail::choose(out.choice_TE, routing, top_k);
    out.index_TK = at::where(held_T.to(at::kBool).unsqueeze(1), out.index_TK, plain_TK);
  }
  out.gate_TK = detail::gates(parent_TE, out.index_TK, routing);
  return out;
}

}  // namespace coppice::nn
