#pragma once

// Bytes of a child's tensor made from the parent's, whatever the layout.

#include <functional>

#include "coppice/families/match.h"
#include "coppice/upcycle/output_tensors.h"
#include "coppice/upcycle/plan.h"
#include "coppice/upcycle/stored_matrix.h"

namespace coppice::upcycle::detail {

/// The bytes of expert `child` in a tensor of experts: all of `after`, or its slice where the tensor is stacked. `before`
/// is the same tensor with the shape that it has in the model before. The plan outlives the result.
///
/// Random numbers count elements in [out, in] order of each matrix, so a method gives the values that it gives to the
/// same model in any other layout.
/// Memory   by rows: 256 KiB fp32 a few times over. Where matrices are stored [in, out], or the method holds them whole:
///          the expert's stored bytes and some fp32 copies of its largest matrix.
PieceMaker::Fill child_fill(const GrowthPlan& plan, const Child& child, const families::TensorSlot& before,
                            const families::TensorSlot& after, io::Dtype dtype,
                            const std::function<StoredExpert(uint32_t expert)>& original);
/// A piece of them whose maker and number are still to be set.
OutputPiece child_piece(const GrowthPlan& plan, const families::TensorSlot& after, io::Dtype dtype);

}  // namespace coppice::upcycle::detail
