#pragma once

#include "coppice/families/match.h"

namespace coppice::grow {

/// The bf16 model that a quantised one stands for: every quantised matrix, of experts and of other layers, is computed
/// from its parts when it is read, and rounded once. The parts, the scales of activations, the quantisation of the
/// configuration and the files that describe it are left out.
///
/// Memory   about 400 bytes for each quantised matrix.
/// Throws   Error{kUnsupported} naming the quantisation if coppice cannot compute its values, listing tensors whose
///          purpose is unknown or whose dtype or shape has no meaning that is known; Error{kUsage} if the model is not
///          quantised.
families::Model dequantised(families::Model model);

/// What `dequantised` can compute, for messages and help.
inline constexpr std::string_view kDequantisable =
    "fp8 (by block or by tensor), mxfp4, compressed-tensors (fp8, int8, int4, nvfp4, mxfp4), modelopt (NVFP4, FP8)";

}  // namespace coppice::grow
