#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "coppice/kernels/moe_detail.h"
#include "coppice/kernels/pair_order_detail.h"

namespace coppice::kernels::detail {

/// The order of a layer's pairs, with the tensors that hold it.
struct KeptOrder {
  at::Tensor first_row, pair_of_row, row_of_pair;  ///< int32, where the indices are
  PairOrder order;

  /// For MoeForward::order.
  std::vector<at::Tensor> tables() const { return {first_row, pair_of_row, row_of_pair}; }
};
/// Room for an order of so many rows; `index` and the sizes are filled in.
KeptOrder room_for_order(const MoeInputs& inputs, int64_t rows);
/// The order of the forward pass, from its `tables()`.
KeptOrder order_from(const MoeInputs& inputs, std::span<const at::Tensor> tables);

}  // namespace coppice::kernels::detail
