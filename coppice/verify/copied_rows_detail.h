#pragma once

#include <vector>

#include "coppice/verify/layer_rows_detail.h"
#include "coppice/verify/verify.h"

namespace coppice::verify::detail {

/// Holds router rows, biases and scales of a layer's copies to their parents', to each other as one method leaves them
/// (unless there were `several_growths`), and what stands behind the experts to what it was. Counts them.
///
/// Shapes   parents, is_original: [experts after]; a parent of -1: not known.
void check_copied_rows(const LayerRows& rows, const std::vector<int64_t>& parents, const std::vector<bool>& is_original,
                       bool several_growths, VerifyResult& result);

}  // namespace coppice::verify::detail
