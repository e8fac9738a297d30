#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>

#include "coppice/base/check.h"
#include "coppice/kernels/kept_order_detail.h"

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

}  // namespace coppice::kernels::detail
