#pragma once

// Bytes of a child's tensor made from the parent's, whatever the layout.

#include <functional>
#include <span>
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

/// Bytes that hold the matrices that `prepare` gives, each at its place. `prepare` is called for the first bytes that
/// are asked for.
///
/// Memory   matrices that lie in rows, of rows that can be had a few at a time: 256 KiB fp32 a few times over; else what
///          `prepare` holds.
PieceMaker::Fill matrices_fill(std::vector<families::ExpertMatrix> places, io::Dtype dtype,
                               std::function<std::vector<MatrixRows>()> prepare);
/// How many these are.
uint64_t matrices_bytes(std::span<const families::ExpertMatrix> places, io::Dtype dtype);
/// Whether any range of them can be made by itself, if rows of the matrices can be had in any order (`by_rows`).
bool matrices_cuttable(std::span<const families::ExpertMatrix> places, bool by_rows);
/// A piece of them.
OutputPiece matrices_piece(std::vector<families::ExpertMatrix> places, io::Dtype dtype, bool by_rows,
                           std::function<std::vector<MatrixRows>()> prepare);

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
