#include "coppice/nn/placement.h"

#include <map>
#include <tuple>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::nn {

std::vector<int64_t> ExpertPlacement::experts_of(int64_t rank) const {
  std::vector<int64_t> out;
  for (int64_t e = 0; e < num_experts(); ++e) {
    if (rank_of[static_cast<size_t>(e)] == rank) out.push_back(e);
  }
  return out;
}

ExpertPlacement place_experts(int64_t num_experts, std::span<const uint32_t> parents, int64_t num_ranks) {
  COPPICE_CHECK(num_ranks > 0 && (parents.empty() || std::ssize(parents) == num_experts));
  if (num_ranks > num_experts) {
    throw Error(ErrorCode::kUsage, cat("an expert group of ", num_ranks, " ranks for ", num_experts,
                                       " experts; wanted at least one expert a rank (use smaller expert groups)"));
  }
  const int64_t most = (num_experts + num_ranks - 1) / num_ranks;
  ExpertPlacement out{num_ranks, {}};
  std::vector<int64_t> held(static_cast<size_t>(num_ranks), 0);
  std::map<uint32_t, std::vector<int64_t>> siblings;  // by lineage, on each rank
  for (int64_t e = 0; e < num_experts; ++e) {
    std::vector<int64_t>* of_lineage = nullptr;
    if (!parents.empty()) {
      of_lineage = &siblings[parents[static_cast<size_t>(e)]];
      of_lineage->resize(static_cast<size_t>(num_ranks), 0);
    }
    const auto cost = [&](int64_t rank) {
      const auto r = static_cast<size_t>(rank);
      return std::tuple(held[r] == most, of_lineage ? (*of_lineage)[r] : 0, held[r]);
    };
    int64_t best = 0;
    for (int64_t rank = 1; rank < num_ranks; ++rank) {
      if (cost(rank) < cost(best)) best = rank;
    }
    out.rank_of.push_back(best);
    ++held[static_cast<size_t>(best)];
    if (of_lineage) ++(*of_lineage)[static_cast<size_t>(best)];
  }
  return out;
}

}  // namespace coppice::nn
