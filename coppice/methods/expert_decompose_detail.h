#pragma once

#include "coppice/base/rng.h"
#include "coppice/matrix/dense.h"
#include "coppice/methods/expert_init.h"

namespace coppice::methods {

/// The whole matrix. All values that a method reads are finite (finite.h).
matrix::Dense whole(const matrix::MatrixRows& matrix);

/// The rows of a matrix that is in memory.
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
     .help = "norm of the noise on the singular vectors, relative to theirs"},
    {.key = "redraw",
     .fallback = 0.0,
     .lo = 0.0,
     .hi = 1.0,
     .help = "share of the singular values, from the smallest, that is replaced by new random values"}};

struct SvdStreams {
  Rng values, left, right, small;
};
/// m with noise on its singular values and vectors.
matrix::Dense svd_perturbed(const matrix::Dense& m, const Params& params, const SvdStreams& streams);

}  // namespace coppice::methods
