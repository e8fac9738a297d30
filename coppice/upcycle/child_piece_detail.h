#pragma once

// Bytes of a child's tensor made from the parent's, whatever the layout.

#include <functional>
#include <vector>

#include "coppice/families/expert_layout.h"
#include "coppice/families/match.h"
#include "coppice/upcycle/output_tensors.h"
#include "coppice/upcycle/plan.h"

namespace coppice::upcycle::detail {

/// Where an original's values are: a tensor, or its slice of a stacked one.
struct StoredExpert {
  io::Checkpoint::Entry entry;
  families::ExpertSlice slice;
};

/// A matrix where it is stored; read from the file by rows where it lies in rows, else held whole.
///
/// Throws   Error{kNonFinite} from its `read`, naming the tensor, if a value is NaN or infinite.
MatrixRows stored_matrix(const StoredExpert& stored, const families::ExpertMatrix& place);

/// A piece that holds the matrices that `prepare` gives, each at its place. `by_rows`: their rows can be had in any
/// order, a few at a time.
///
/// Memory   by rows: 256 KiB fp32 a few times over; else what `prepare` holds.
OutputPiece matrices_piece(std::vector<families::ExpertMatrix> places, io::Dtype dtype, bool by_rows,
                           std::function<std::vector<MatrixRows>()> prepare);

/// The piece of expert `child` in a tensor of experts: all of `after`, or its slice where the tensor is stacked. `before`
/// is the same tensor with the shape that it has in the model before. The plan outlives the piece.
///
/// Random numbers count elements in [out, in] order of each matrix, so a method gives the values that it gives to the
/// same model in any other layout.
/// Memory   by rows: 256 KiB fp32 a few times over. Where matrices are stored [in, out], or the method holds them whole:
///          the expert's stored bytes and some fp32 copies of its largest matrix.
OutputPiece child_piece(const GrowthPlan& plan, const Child& child, const families::TensorSlot& before,
                        const families::TensorSlot& after, io::Dtype dtype,
                        const std::function<StoredExpert(uint32_t expert)>& original);

}  // namespace coppice::upcycle::detail
