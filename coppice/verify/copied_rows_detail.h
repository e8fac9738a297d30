#pragma once

#include <vector>

#include "coppice/verify/layer_rows_detail.h"
#include "coppice/verify/verify.h"

namespace coppice::verify::detail {

/// Checks router rows, biases and scales of a layer's copies: against their parents', against each other (one method
/// changes all alike, unless there were `several_growths`), and rows after the experts' against those before. Counts
/// them.
///
/// Shapes   parents, is_original: [experts after]; a parent of -1 is unknown.
void check_copied_rows(const LayerRows& rows, const std::vector<int64_t>& parents, const std::vector<bool>& is_original,
                       bool several_growths, VerifyResult& result);

}  // namespace coppice::verify::detail
