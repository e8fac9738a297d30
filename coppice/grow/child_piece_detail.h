#pragma once

// Bytes of a child's tensor made from the parent's, whatever the layout.

#include <functional>

#include "coppice/families/match.h"
#include "coppice/matrix/stored_matrix.h"
#include "coppice/output/tensors.h"
#include "coppice/plan/plan.h"

namespace coppice::grow::detail {

/// The bytes of expert `child` in a tensor of experts: all of `after`, or its slice where the tensor is stacked. `before`
/// is the same tensor with the shape that it has in the model before. The plan outlives the result.
///
/// Random numbers count elements in [out, in] order of each matrix, so a method gives the values that it gives to the
/// same model in any other layout.
/// Memory   by rows: 256 KiB fp32 a few times over. Where matrices are stored [in, out], or the method holds them whole:
///          the expert's stored bytes and some fp32 copies of its largest matrix.
output::PieceMaker::Fill child_fill(const plan::GrowthPlan& plan, const methods::Child& child,
                                    const families::TensorSlot& before, const families::TensorSlot& after,
                                    io::Dtype dtype,
                                    const std::function<matrix::StoredExpert(uint32_t expert)>& original);
/// A piece of them whose maker and number are still to be set.
output::OutputPiece child_piece(const plan::GrowthPlan& plan, const families::TensorSlot& after, io::Dtype dtype);

}  // namespace coppice::grow::detail
