#pragma once

// Computes the bytes of a child's tensor from its parent's, in any layout.

#include <functional>

#include "coppice/families/match.h"
#include "coppice/matrix/stored_matrix.h"
#include "coppice/output/tensors.h"
#include "coppice/plan/plan.h"

namespace coppice::grow::detail {

/// The matrix of an original expert that has `place` in its tensor.
using Originals = std::function<matrix::MatrixRows(uint32_t expert, const models::ExpertMatrix& place)>;

/// Computes the bytes of expert `child` in a tensor of experts: the whole tensor `after`, or its slice if the tensor is
/// stacked. `before` is the same tensor with its shape in the model before. The plan must outlive the result.
///
/// Random numbers are indexed by elements in [out, in] order of each matrix, so a method gives the same values in every
/// layout.
/// Memory   a few times 256 KiB if the child is computed by rows. If matrices are stored [in, out], or the method needs
///          whole matrices: the expert's stored bytes and a few fp32 copies of its largest matrix.
output::PieceMaker::Fill child_fill(const plan::GrowthPlan& plan, const methods::Child& child,
                                    const families::TensorSlot& before, const families::TensorSlot& after,
                                    io::Dtype dtype, const Originals& original);
/// An output piece for these bytes; the caller still sets its maker and number.
output::OutputPiece child_piece(const plan::GrowthPlan& plan, const families::TensorSlot& after, io::Dtype dtype);

}  // namespace coppice::grow::detail
