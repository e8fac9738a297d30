#pragma once

// Dense linear algebra in fp32 for methods that decompose a matrix. It uses Eigen, one .cpp per decomposition, because
// it is slow to compile. Single-threaded; one build gives the same bits whatever the processor's caches.

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace coppice::matrix {

/// Row-major.
struct Dense {
  int64_t rows = 0, cols = 0;
  std::vector<float> values;  ///< [rows, cols]

  float& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  float at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};
Dense transposed(const Dense& m);

/// The columns made orthonormal, as Q of the QR decomposition with R's diagonal positive; for a matrix that is wider
/// than tall, the rows.
///
/// Memory   two copies of the matrix and its square; four, in fp64, if the matrix is ill-conditioned.
Dense orthonormal(const Dense& m);
Dense orthonormal_columns(const Dense& m);  ///< for a matrix that is not wider than tall

/// m = u diag(s) v', s falling; the largest entry of each column of u is positive.
struct Svd {
  Dense u;               ///< [rows, k], k = min(rows, cols)
  std::vector<float> s;  ///< [k]
  Dense v;               ///< [cols, k]
};
/// Memory   six copies of the matrix.
Svd singular_values(const Dense& m);

/// a diag(s) b', [a.rows, b.rows].
Dense product(const Dense& a, std::span<const float> s, const Dense& b);

/// a b, [a.rows, b.cols].
Dense product(const Dense& a, const Dense& b);

/// Sparse codes C of X = dictionary C: `iterations` steps of ISTA from 0 for |X - D C|^2 / 2 with the threshold
/// step * `penalty`, step = 1 / the largest eigenvalue of D'D.
///
/// Shapes   dictionary [rows, atoms], x [rows, cols]; returns [atoms, cols].
/// Source   Daubechies, Defrise, De Mol, arXiv:math/0307152.
Dense sparse_codes(const Dense& dictionary, const Dense& x, double penalty, int iterations);

/// Block sizes of Eigen's products that do not depend on the processor.
void fix_block_sizes();

}  // namespace coppice::matrix
