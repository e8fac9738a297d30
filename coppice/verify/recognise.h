#pragma once

// Whose child every expert is, found by content alone: for models whose lineage says nothing of it.

#include <cstdint>
#include <vector>

#include "coppice/models/expert_parts.h"
#include "coppice/verify/expert_content.h"
#include "coppice/verify/verify.h"

namespace coppice::verify {

/// What a growth multiplies stored values by whatever the methods, where as many more experts are chosen.
struct GrowthFactors {
  ExpertFactors experts;
  double selection_bias = 1;
};

/// Finds the originals of one MoE layer, which have to be there bit for bit, and the parent of every other expert:
/// matrix by matrix, all of one parent, by equal matrices, then equal columns or rows at their places, then the same
/// columns or rows in another order, then the cosine of sampled values. Holds the copies to each other, as one method
/// leaves them (unless `several_growths` may have made them), routers and biases to their parents', router groups to
/// those of before. Adds what it finds to `result`.
///
/// Memory   4 bytes for each row and column of the layer's experts, up to 4,096 values of each matrix; its router in
///          fp32; a matrix per thread.
void recognise_layer(const models::ExpertParts& before, const models::ExpertParts& after, int64_t layer,
                     const GrowthFactors& factors, bool several_growths, size_t threads, VerifyResult& result);

}  // namespace coppice::verify
