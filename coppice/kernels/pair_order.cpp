#include <limits>
#include <numeric>

#include "coppice/base/check.h"
#include "coppice/kernels/pair_order_detail.h"

namespace coppice::kernels::detail {
PairOrder order_pairs(const at::Tensor& index_TK, int64_t num_experts,
                      const std::function<int64_t(int64_t rows)>& filled_up) {
  const int64_t pairs = index_TK.numel();
  COPPICE_CHECK(pairs <= std::numeric_limits<int32_t>::max() && index_TK.is_contiguous());
  const auto* expert_of = index_TK.const_data_ptr<int64_t>();

  PairOrder order;
  order.top_k = index_TK.size(1);
  order.count.assign(num_experts, 0);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    COPPICE_CHECK(expert_of[pair] >= 0 && expert_of[pair] < num_experts, "expert ", expert_of[pair]);
    ++order.count[expert_of[pair]];
  }
  order.first_row.assign(num_experts + 1, 0);
  for (int64_t e = 0; e < num_experts; ++e) {
    order.first_row[e + 1] = order.first_row[e] + filled_up(order.count[e]);
  }
  order.pair_of_row.assign(order.num_rows(), -1);
  order.row_of_pair.resize(pairs);
  std::vector<int64_t> next(order.first_row.begin(), order.first_row.end() - 1);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t row = next[expert_of[pair]]++;
    order.pair_of_row[row] = static_cast<int32_t>(pair);
    order.row_of_pair[pair] = static_cast<int32_t>(row);
  }
  return order;
}

}  // namespace coppice::kernels::detail
