#pragma once

#include "coppice/families/match.h"
#include "coppice/upcycle/output_tensors.h"
#include "coppice/upcycle/plan.h"

namespace coppice::upcycle::detail {

/// The tensor that stacks all experts of a layer, after growth: a piece for each child, its parent's bytes of the source
/// or computed matrix by matrix. Random numbers count elements in [out, in] order of each matrix, so a method gives the
/// values that it gives to the same model with a tensor for each matrix. The arguments outlive the result.
///
/// Memory   of computed pieces: the stored bytes of one expert, of its largest matrix one copy as stored and two fp32.
OutputTensor grown_stack(const families::Model& model, const GrowthPlan& plan, const families::TensorSlot& slot,
                         io::TensorInfo info, const io::Checkpoint::Entry& source);

}  // namespace coppice::upcycle::detail
