#include "coppice/base/text.h"
#include "coppice/plan/lineage.h"
#include "coppice/verify/router_groups_detail.h"

namespace coppice::verify::detail {

void check_router_groups(const families::ModelConfig& before, const families::ModelConfig& after, int64_t layer,
                         const std::vector<int64_t>& parents, VerifyResult& result) {
  if (before.routing.num_groups <= 1 || after.routing.num_groups <= 1) return;
  const int64_t size_before = before.num_experts / before.routing.num_groups;
  const int64_t size_after = after.num_experts / after.routing.num_groups;
  std::vector<int64_t> from(static_cast<size_t>(after.routing.num_groups), -1);
  for (size_t child = 0; child < parents.size(); ++child) {
    if (parents[child] < 0) continue;
    const int64_t group = static_cast<int64_t>(child) / size_after, own = parents[child] / size_before;
    int64_t& first = from[static_cast<size_t>(group)];
    if (first < 0) first = own;
    if (first == own) continue;
    result.problems.push_back(cat("layer ", layer, ": router group ", group, " has experts of the groups ", first,
                                  " and ", own,
                                  " of the model before; wanted those of a single group (an expansion with ",
                                  "--allow-regroup can be verified with its ", io::kLineageFile, ")"));
    return;
  }
}

}  // namespace coppice::verify::detail
