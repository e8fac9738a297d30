#include "coppice/nn/division.h"

#include <numeric>

#include "coppice/base/check.h"

namespace coppice::nn {

std::vector<int64_t> Division::experts(int64_t layer, int64_t num_experts) const {
  const auto found = placement.find(layer);
  if (found != placement.end()) {
    COPPICE_CHECK(found->second.num_experts() == num_experts, "layer ", layer);
    return found->second.experts_of(expert_rank);
  }
  std::vector<int64_t> all(static_cast<size_t>(num_experts));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace coppice::nn
