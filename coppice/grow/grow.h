#pragma once

// The growth itself, as pure functions on bytes: both carriers (disk and memory) call these and nothing else, so that
// they agree bit for bit.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "coppice/families/family.h"
#include "coppice/io/dtype.h"
#include "coppice/matrix/matrix_bytes.h"
#include "coppice/matrix/matrix_rows.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/plan/plan.h"

namespace coppice::grow {

/// True where the child's tensors are its parent's byte for byte (originals, and methods that copy): carriers then just
/// copy.
bool is_plain_copy(const plan::GrowthPlan& plan, const methods::Child& child);
/// The same for one tensor: also where this layer's method leaves `role` (a bias) alone.
bool is_plain_copy(const plan::GrowthPlan& plan, int64_t layer, const methods::Child& child, families::Role role);

/// The matrix of expert `child` in `layer`, in fp32 and not rounded yet, from those of the originals.
matrix::MatrixRows child_matrix(const plan::GrowthPlan& plan, int64_t layer, const methods::Child& child,
                                families::Role role, const matrix::RowsSource& originals);
/// True if the child's rows can be had without all of its matrix in memory.
bool grows_by_rows(const plan::GrowthPlan& plan, int64_t layer);

/// `child_matrix` of matrices in memory, rounded once to `out_dtype`.
void grow_expert(const plan::GrowthPlan& plan, int64_t layer, const methods::Child& child, families::Role role,
                 const matrix::MatrixSource& source, io::Dtype out_dtype, std::span<std::byte> out);

/// The router weight [N, d], router bias [N] or selection bias [N] after growth; a change lost in rounding becomes one
/// step of the dtype.
///
/// Shapes   before: [E, d] (biases: cols 1); out: N * cols elements of before.dtype.
void grow_router(const plan::GrowthPlan& plan, int64_t layer, families::Role role, matrix::MatrixBytes before,
                 std::span<std::byte> out, bool has_router_bias);

/// A child's Adam moment (fp32) of an expert matrix. `weights` gives the fp32 (master) weights, for strategies that
/// look at the change.
void grow_expert_moment(const plan::GrowthPlan& plan, int64_t layer, const methods::Child& child, families::Role role,
                        methods::Moment kind, const matrix::MatrixSource& moments, const matrix::MatrixSource& weights,
                        std::span<float> out);
/// The moments of a grown router tensor, row by row. Rows count as unchanged for strategies that look at the change:
/// router methods move them by a few percent at most.
void grow_router_moment(const plan::GrowthPlan& plan, int64_t layer, methods::Moment kind,
                        std::span<const float> before, int64_t cols, std::span<float> out);
/// Step count of a child whose parent's is `parent_step`.
int64_t grow_step(const plan::GrowthPlan& plan, const methods::Child& child, int64_t parent_step);

}  // namespace coppice::grow
