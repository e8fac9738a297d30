#pragma once

#include "coppice/base/rng.h"
#include "coppice/matrix/dense.h"
#include "coppice/methods/expert_init.h"

namespace coppice::methods {

/// All of the matrix. Values that a method sees are finite (finite.h).
matrix::Dense whole(const matrix::MatrixRows& matrix);

/// Rows of a matrix that is there already.
matrix::RowFill rows_of(matrix::Dense m);

inline constexpr ParamSpec kSvdPerturbParams[] = {
    {.key = "values",
     .fallback = 0.1,
     .lo = 0.0,
     .hi = 10.0,
     .help = "std of the relative noise on the singular values"},
    {.key = "vectors",
     .fallback = 0.05,
     .lo = 0.0,
     .hi = 10.0,
     .help = "noise on the singular vectors: its length beside theirs"},
    {.key = "redraw",
     .fallback = 0.0,
     .lo = 0.0,
     .hi = 1.0,
     .help = "share of the singular values, the smallest, that is drawn anew"}};

struct SvdStreams {
  Rng values, left, right, small;
};
/// m with noise on its singular values and vectors.
matrix::Dense svd_perturbed(const matrix::Dense& m, const Params& params, const SvdStreams& streams);

}  // namespace coppice::methods
