#include <algorithm>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/kernels/cpu/moe_rows_detail.h"

namespace coppice::kernels::cpu {

using detail::KeptOrder;
using detail::MoeInputs;

KeptOrder order_pairs(const MoeInputs& inputs, const std::function<int64_t(int64_t rows)>& filled_up) {
  const auto* const expert_of = inputs.index_TK.const_data_ptr<int64_t>();
  const int64_t pairs = inputs.index_TK.numel(), experts = inputs.w_down_EDF.size(0);
  std::vector<int64_t> count(experts, 0), next(experts, 0);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    COPPICE_CHECK(expert_of[pair] >= 0 && expert_of[pair] < experts, "expert ", expert_of[pair]);
    ++count[expert_of[pair]];
  }
  int64_t rows = 0;
  for (int64_t e = 0; e < experts; ++e) {
    next[e] = rows;
    rows += filled_up(count[e]);
  }

  KeptOrder kept = detail::room_for_order(inputs, rows);
  const PairOrder& order = kept.order;
  for (int64_t e = 0; e < experts; ++e) order.first_row[e] = static_cast<int32_t>(next[e]);
  order.first_row[experts] = static_cast<int32_t>(rows);
  std::fill_n(order.pair_of_row, rows, -1);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t row = next[expert_of[pair]]++;
    order.pair_of_row[row] = static_cast<int32_t>(pair);
    order.row_of_pair[pair] = static_cast<int32_t>(row);
  }
  return kept;
}

}  // namespace coppice::kernels::cpu
