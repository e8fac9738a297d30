#include "coppice/step/over_ranks.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <vector>

#include "coppice/base/check.h"

namespace coppice::step {

dist::World* ranks_of(const nn::Decoder& model) {
  dist::World* const world = model.division().world.get();
  return world && world->size() > 1 ? world : nullptr;
}

PassWindows pass_windows(int64_t begin, int64_t batch, int64_t micro_batch, int64_t rank, int64_t ranks) {
  COPPICE_CHECK(batch % ranks == 0, "a batch of ", batch, " windows for ", ranks, " ranks");
  const int64_t together = std::min(micro_batch * ranks, batch - begin), own = together / ranks;
  return {.first = begin + rank * own, .count = own, .left = batch - begin - together};
}

std::map<int64_t, at::Tensor> sums_over_ranks(dist::World* world, const std::map<int64_t, at::Tensor>& counts) {
  if (!world || counts.empty()) return counts;
  std::vector<at::Tensor> flat;
  for (const auto& [layer, count] : counts) flat.push_back(count.reshape({-1}));
  const at::Tensor all = at::cat(flat);
  world->all().all_reduce(all).wait();
  std::map<int64_t, at::Tensor> out;
  int64_t begin = 0;
  for (const auto& [layer, count] : counts) {
    out[layer] = all.narrow(0, begin, count.numel()).view(count.sizes());
    begin += count.numel();
  }
  return out;
}

}  // namespace coppice::step
