#pragma once

#include "coppice/nn/router.h"

namespace coppice::nn::detail {

/// The experts that `route` chooses by such scores, by libtorch's stable sort on any device.
///
/// Shapes   choice_TE f32; returns [T, top_k] int64, by falling score, ties to the lower expert.
at::Tensor choose_by_sorting(const at::Tensor& choice_TE, const families::Routing& routing, int64_t top_k);

}  // namespace coppice::nn::detail
