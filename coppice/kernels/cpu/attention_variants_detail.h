#pragma once

#include "coppice/kernels/attention_detail.h"

namespace coppice::kernels::cpu {

/// Without windows and sinks.
extern const detail::AttentionVariant kAttentionByWords, kAttentionByTiles;

}  // namespace coppice::kernels::cpu
