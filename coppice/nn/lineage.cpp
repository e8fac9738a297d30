#include "coppice/nn/lineage.h"

#include <ATen/ops/exp.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"
#include "coppice/kernels/lineage_choice.h"
#include "coppice/nn/host.h"
#include "coppice/nn/router_detail.h"

namespace coppice::nn {
namespace {

using families::GateFunction;

[[noreturn]] void refuse(ErrorCode code, int64_t layer, const std::string& problem) {
  throw Error(code, cat("the lineage of layer ", layer, ": ", problem));
}

/// Throws   Error{kFormat} if the lineage does not fit this model; Error{kUnsupported} if a lineage has experts in more
///          than one router group.
void check_fits(const Lineage& lineage, int64_t layer, int64_t experts, int64_t top_k, int64_t groups) {
  const auto found = lineage.parents().find(layer);
  if (found == lineage.parents().end())
    refuse(ErrorCode::kFormat, layer, "it has no parents (the lineage does not belong to this model)");
  const std::vector<uint32_t>& parents = found->second;
  const int64_t lineages = lineage.num_lineages();
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
}

Lineage::Layer layer_of(const std::vector<uint32_t>& parents, int64_t num_lineages, at::Device device) {
  const auto experts = std::ssize(parents);
  std::vector<std::vector<int64_t>> children(static_cast<size_t>(num_lineages));
  for (int64_t e = 0; e < experts; ++e) children.at(parents[static_cast<size_t>(e)]).push_back(e);
  const auto most = std::ranges::max(children, {}, &std::vector<int64_t>::size).size();
  std::vector<int64_t> parent(parents.begin(), parents.end()), child;
  std::vector<float> log_r;
  for (const auto& of_lineage : children) {
    child.insert(child.end(), of_lineage.begin(), of_lineage.end());
    child.insert(child.end(), most - of_lineage.size(), -1);
  }
  for (const uint32_t p : parents) log_r.push_back(std::log(static_cast<float>(children[p].size())));
  return {from_host<int64_t>(parent, {experts}, device),
          from_host<int64_t>(child, {num_lineages, static_cast<int64_t>(most)}, device),
          from_host<float>(log_r, {experts}, device)};
}

}  // namespace

const Lineage::Layer& Lineage::on(at::Device device, int64_t layer) const {
  const std::lock_guard lock(mutex_);
  const auto [found, is_new] = layers_.try_emplace({device.str(), layer});
  if (is_new) found->second = layer_of(parents_.at(layer), num_lineages_, device);
  return found->second;
}

at::Tensor Lineage::sums(int64_t layer, const at::Tensor& value_E) const {
  const auto& parent_E = on(value_E.device(), layer).parent_E;
  // In the order of the experts on any device (index_add has none on a GPU, and three siblings can tell).
  return at::zeros({num_lineages_}, value_E.options()).index_put_({parent_E}, value_E, /*accumulate=*/true);
}

Routed route_by_lineage(const at::Tensor& logits_TE, const at::Tensor& selection_bias_E,
                        const families::Routing& routing, int64_t top_k, const LineageRouting& routed_by, int64_t layer,
                        uint64_t first_token) {
  check_fits(*routed_by.lineage, layer, logits_TE.size(1), top_k, routing.num_groups);
  const auto& [parent_E, child_LR, log_r_E] = routed_by.lineage->on(logits_TE.device(), layer);
  const auto held_T = kernels::tokens_held(logits_TE, first_token, routed_by.seed, routed_by.share);
  const auto log_r_TE = at::outer(held_T.to(at::kFloat), log_r_E);
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

  const auto best = kernels::best_children(out.choice_TE, logits_TE.detach(), selection_bias_E, child_LR,
                                           routed_by.seed ^ splitmix64(static_cast<uint64_t>(layer)), first_token);
  out.index_TK = at::gather(best.child_TL, 1, detail::choose(best.score_TL, routing, top_k));
  if (routed_by.share < 1) {
    const auto plain_TK = detail::choose(out.choice_TE, routing, top_k);
    out.index_TK = at::where(held_T.unsqueeze(1), out.index_TK, plain_TK);
  }
  out.gate_TK = detail::gates(parent_TE, out.index_TK, routing);
  return out;
}

}  // namespace coppice::nn
