#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>

#include "coppice/base/check.h"
#include "coppice/kernels/kept_order_detail.h"

namespace coppice::kernels::detail {

KeptOrder room_for_order(const MoeInputs& inputs, int64_t rows) {
  const auto room = [&](int64_t count) { return at::empty({count}, inputs.index_TK.options().dtype(at::kInt)); };
  return order_from(inputs, {{room(inputs.w_down_EDF.size(0) + 1), room(rows), room(inputs.index_TK.numel())}});
}

KeptOrder order_from(const MoeInputs& inputs, std::span<const at::Tensor> tables) {
  COPPICE_CHECK(tables.size() == 3 && inputs.index_TK.is_contiguous());
  KeptOrder kept{.first_row = tables[0], .pair_of_row = tables[1], .row_of_pair = tables[2], .order = {}};
  kept.order = {.tokens = inputs.index_TK.size(0),
                .top_k = inputs.index_TK.size(1),
                .experts = inputs.w_down_EDF.size(0),
                .rows = kept.pair_of_row.numel(),
                .index = inputs.index_TK.const_data_ptr<int64_t>(),
                .first_row = kept.first_row.mutable_data_ptr<int32_t>(),
                .pair_of_row = kept.pair_of_row.mutable_data_ptr<int32_t>(),
                .row_of_pair = kept.row_of_pair.mutable_data_ptr<int32_t>()};
  COPPICE_CHECK(std::max(kept.order.rows, kept.order.pairs()) <= std::numeric_limits<int32_t>::max());
  return kept;
}

}  // namespace coppice::kernels::detail
