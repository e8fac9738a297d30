#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/kernels/moe_detail.h"
#include "coppice/kernels/pair_order_detail.h"

namespace coppice::kernels::detail {

KeptOrder room_for_order(const MoeInputs& inputs, int64_t rows) {
  KeptOrder kept;
  PairOrder& order = kept.order;
  order = {.tokens = inputs.index_TK.size(0),
           .top_k = inputs.index_TK.size(1),
           .experts = inputs.w_down_EDF.size(0),
           .rows = rows,
           .index = inputs.index_TK.const_data_ptr<int64_t>()};
  COPPICE_CHECK(std::max(rows, order.pairs()) <= std::numeric_limits<int32_t>::max() &&
                inputs.index_TK.is_contiguous());
  const auto room = [&](int64_t count, int32_t*& data) {
    auto tensor = at::empty({count}, inputs.index_TK.options().dtype(at::kInt));
    data = tensor.mutable_data_ptr<int32_t>();
    return tensor;
  };
  kept.first_row = room(order.experts + 1, order.first_row);
  kept.pair_of_row = room(order.rows, order.pair_of_row);
  kept.row_of_pair = room(order.pairs(), order.row_of_pair);
  return kept;
}

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

  KeptOrder kept = room_for_order(inputs, rows);
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

}  // namespace coppice::kernels::detail
