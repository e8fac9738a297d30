#pragma once

#include <cstdint>
#include <vector>

#include "coppice/families/expert_parts.h"
#include "coppice/upcycle/verify.h"

namespace coppice::upcycle {

/// Finds the parent of every expert of one MoE layer and holds the router to it; adds what it finds to `result`.
///
/// Memory   digests and sampled entries of one layer's experts, its router in fp32, a window per thread.
void verify_layer(const families::ExpertParts& before, const families::ExpertParts& after, int64_t layer,
                  size_t threads, VerifyResult& result);

}  // namespace coppice::upcycle
