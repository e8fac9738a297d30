#include "coppice/step/sibling_routing.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

#include "coppice/base/check.h"
#include "coppice/nn/host.h"
#include "coppice/step/layer_metrics.h"

namespace coppice::step {
namespace {

using Parents = std::map<int64_t, std::vector<uint32_t>>;
/// Of one layer.
struct Layer {
  int64_t number = 0;
  std::span<const uint32_t> parents;
  IdsByExpert ids;  ///< of this rank's tokens; then of all tokens that went to the experts that this rank compares
  SiblingCounts counts;
};

std::vector<Layer> layers_of(const StepReport& report, const Parents& parents) {
  std::vector<Layer> out;
  if (!report.token_T.defined()) return out;
  const TokensById tokens(report.token_T);
  for (const auto& [number, load] : report.layers) {
    const auto own = parents.find(number);
    if (own == parents.end() || !load.index_TK.defined()) continue;
    out.push_back({.number = number,
                   .parents = own->second,
                   .ids = ids_by_expert(load.index_TK, tokens, own->second.size()),
                   .counts = count_parents(load.index_TK, own->second)});
  }
  return out;
}

/// Siblings are compared by one rank.
class Comparers {
 public:
  Comparers(dist::World& world, std::vector<Layer>& layers) : world_(world), layers_(layers) {}

  /// Brings the ids of each expert's tokens to the rank that compares it.
  void bring_ids() const {
    const auto ranks = static_cast<size_t>(world_.size());
    std::vector<int64_t> sent, sent_to(ranks), came_from(ranks), counts;
    for (size_t rank = 0; rank < ranks; ++rank) {
      for_experts_of(rank, [&](size_t, IdsByExpert::value_type& ids) {
        sent_to[rank] += std::ssize(ids);
        sent.insert(sent.end(), ids.begin(), ids.end());
      });
    }
    for (const Layer& layer : layers_) {
      for (const auto& ids : layer.ids) counts.push_back(std::ssize(ids));
    }
    const auto all_counts = gathered(counts);
    const auto count_of = [&](size_t rank, size_t expert) { return all_counts[rank * counts.size() + expert]; };
    const auto mine = static_cast<size_t>(world_.rank());
    for (size_t rank = 0; rank < ranks; ++rank) {
      for_experts_of(mine, [&](size_t expert, auto&) { came_from[rank] += count_of(rank, expert); });
    }
    const auto num_came = std::accumulate(came_from.begin(), came_from.end(), int64_t{0});
    const at::Tensor came = at::empty({num_came}, at::kLong);
    world_.control()
        .all_to_all(came, nn::from_host<int64_t>(sent, {std::ssize(sent)}, at::kCPU), came_from, sent_to)
        .wait();

    for (Layer& layer : layers_) std::ranges::for_each(layer.ids, [](auto& ids) { ids.clear(); });
    auto next = nn::host_values<int64_t>(came).begin();
    for (size_t rank = 0; rank < ranks; ++rank) {
      for_experts_of(mine, [&](size_t expert, auto& ids) {
        const auto end = next + count_of(rank, expert);
        ids.insert(ids.end(), next, end);
        next = end;
      });
    }
    for_experts_of(mine, [](size_t, auto& ids) { std::ranges::sort(ids); });
  }

 private:
  /// Calls `act` with the number of the expert, counted through all layers, and the ids of its tokens.
  template <class Act>
  void for_experts_of(size_t rank, const Act& act) const {
    size_t expert = 0;
    for (Layer& layer : layers_) {
      for (size_t e = 0; e < layer.ids.size(); ++e, ++expert) {
        if (layer.parents[e] % static_cast<size_t>(world_.size()) == rank) act(expert, layer.ids[e]);
      }
    }
  }

  std::vector<int64_t> gathered(const std::vector<int64_t>& own) const {
    const at::Tensor all = at::empty({world_.size(), std::ssize(own)}, at::kLong);
    world_.control().all_gather(all, nn::from_host<int64_t>(own, {std::ssize(own)}, at::kCPU)).wait();
    return nn::to_host<int64_t>(all);
  }

  dist::World& world_;
  std::vector<Layer>& layers_;
};

void sum_over_ranks(dist::World& world, std::vector<double>& values) {
  const at::Tensor all = nn::from_host<double>(values, {std::ssize(values)}, at::kCPU);
  world.control().all_reduce(all).wait();
  values = nn::to_host<double>(all);
}

}  // namespace

std::map<int64_t, SiblingRouting> sibling_routing(const StepReport& report, const Parents& parents,
                                                  dist::World* world) {
  std::vector<Layer> layers = layers_of(report, parents);
  std::map<int64_t, SiblingRouting> out;
  if (layers.empty()) return out;
  if (world) Comparers(*world, layers).bring_ids();
  std::vector<double> sums;
  for (const Layer& layer : layers) {
    const SiblingOverlap overlap = compare_siblings(layer.ids, layer.parents);
    sums.insert(sums.end(), {static_cast<double>(layer.counts.different), static_cast<double>(layer.counts.tokens),
                             overlap.sum, static_cast<double>(overlap.pairs)});
  }
  if (world) sum_over_ranks(*world, sums);
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto of = std::span(sums).subspan(4 * i, 4);
    out[layers[i].number] = {.effective_top_k = of[0] / of[1],
                             .overlap = of[3] > 0 ? std::optional(of[2] / of[3]) : std::nullopt};
  }
  return out;
}

}  // namespace coppice::step
