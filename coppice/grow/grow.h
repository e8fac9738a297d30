#pragma once

// The expansion as pure functions on bytes. Both users (`expand` on disk and the trainer in memory) compute new tensors
// only by these, so their results are bit-equal.

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

/// Whether the child's tensors are byte-equal to its parent's (originals, and methods that copy), so that they are only
/// copied.
bool is_plain_copy(const plan::GrowthPlan& plan, const methods::Child& child);
/// The same for one tensor: also true if this layer's method leaves `role` (a bias) unchanged.
bool is_plain_copy(const plan::GrowthPlan& plan, int64_t layer, const methods::Child& child, families::Role role);

/// The matrix of expert `child` in `layer`, computed from the originals' matrices; fp32, not yet rounded.
matrix::MatrixRows child_matrix(const plan::GrowthPlan& plan, int64_t layer, const methods::Child& child,
                                families::Role role, const matrix::RowsSource& originals);
/// The originals whose matrices or moments decide those of `child`, its parent first.
std::vector<uint32_t> sources_of(const plan::GrowthPlan& plan, int64_t layer, const methods::Child& child);
/// Whether the child's rows can be computed without its whole matrix in memory.
bool grows_by_rows(const plan::GrowthPlan& plan, int64_t layer);

/// Computes `child_matrix` from matrices in memory and rounds it once to `out_dtype`.
void grow_expert(const plan::GrowthPlan& plan, int64_t layer, const methods::Child& child, families::Role role,
                 const matrix::MatrixSource& source, io::Dtype out_dtype, std::span<std::byte> out);

/// The router weight [N, d], router bias [N] or selection bias [N] after the expansion; a change that rounding would
/// remove becomes one step of the dtype.
///
/// Shapes   before: [E, d] (biases: cols 1); out: N * cols elements of before.dtype.
void grow_router(const plan::GrowthPlan& plan, int64_t layer, families::Role role, matrix::MatrixBytes before,
                 std::span<std::byte> out, bool has_router_bias);

/// A child's Adam moment (fp32) of an expert matrix. `weights` gives the fp32 (master) weights, for strategies that
/// use the change of weights.
void grow_expert_moment(const plan::GrowthPlan& plan, int64_t layer, const methods::Child& child, families::Role role,
                        methods::Moment kind, const matrix::MatrixSource& moments, const matrix::MatrixSource& weights,
                        std::span<float> out);
/// The moments of an expanded router tensor, row by row. For strategies that use the change of weights, rows count as
/// unchanged, because router methods change them by a few percent at most.
void grow_router_moment(const plan::GrowthPlan& plan, int64_t layer, methods::Moment kind,
                        std::span<const float> before, int64_t cols, std::span<float> out);
/// Step count of a child whose parent's is `parent_step`.
int64_t grow_step(const plan::GrowthPlan& plan, const methods::Child& child, int64_t parent_step);

}  // namespace coppice::grow
