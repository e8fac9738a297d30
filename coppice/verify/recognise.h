#pragma once

// Finds the parent of every expert by content only, for models without a lineage that records it.

#include <cstdint>
#include <vector>

#include "coppice/models/expert_tensors.h"
#include "coppice/verify/expert_content.h"
#include "coppice/verify/verify.h"

namespace coppice::verify {

/// The factors of stored values that follow from a scaled top-K, whatever the methods.
struct GrowthFactors {
  ExpertFactors experts;
  double selection_bias = 1;
};

/// Finds the originals of one MoE layer, which must be bit-equal, and the parent of every other expert. All matrices of
/// a copy must have the same parent; it is recognised by equal matrices, then by equal columns or rows at the same
/// places, then by the same columns or rows in another order, then by the cosine of sampled values. Then checks that
/// one method can have made all copies (unless there were `several_growths`), and compares routers and biases with
/// their parents' and router groups with those before. Adds the findings to `result`.
///
/// Memory   4 bytes for each row and column of the layer's experts, up to 4,096 values of each matrix; its router in
///          fp32; a matrix per thread.
void recognise_layer(const models::ExpertTensors& before, const models::ExpertTensors& after, int64_t layer,
                     const GrowthFactors& factors, bool several_growths, size_t threads, VerifyResult& result);

}  // namespace coppice::verify
