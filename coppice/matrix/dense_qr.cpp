#include <Eigen/Cholesky>
#include <Eigen/QR>
#include <algorithm>
#include <optional>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/matrix/dense.h"

namespace coppice::matrix {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Eigen::MatrixXf;

/// Q = A R^-1 with R from the Cholesky decomposition of A'A (of a wide A: L^-1 A, by rows): nearly all the work is
/// matrix products. Q is orthonormal to condition^2 times the precision, so the result is none if R's diagonal, which
/// shows the condition, spans more than `span`.
///
/// Source   Yamamoto, Nakatsukasa, Yanagisawa, Fukaya: Roundoff error analysis of the CholeskyQR2 algorithm (ETNA
///          2015).
template <class Scalar>
std::optional<Dense> by_cholesky(const Dense& m, Scalar span) {
  using Rows = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const bool is_wide = m.rows < m.cols;
  Rows a = Eigen::Map<const RowMajor>(m.values.data(), m.rows, m.cols).template cast<Scalar>();
  Rows gram = Rows::Zero(std::min(m.rows, m.cols), std::min(m.rows, m.cols));
  if (is_wide) {
    gram.template selfadjointView<Eigen::Lower>().rankUpdate(a);
  } else {
    gram.template selfadjointView<Eigen::Lower>().rankUpdate(a.transpose());
  }
  const Eigen::LLT<Rows> decomposed(gram);
  if (decomposed.info() != Eigen::Success) return std::nullopt;
  const auto diagonal = decomposed.matrixLLT().diagonal();
  if (!(diagonal.minCoeff() * span > diagonal.maxCoeff())) return std::nullopt;
  if (is_wide) {
    decomposed.matrixL().solveInPlace(a);
  } else {
    decomposed.matrixU().template solveInPlace<Eigen::OnTheRight>(a);
  }
  Dense out{m.rows, m.cols, std::vector<float>(m.values.size())};
  Eigen::Map<RowMajor>(out.values.data(), m.rows, m.cols) = a.template cast<float>();
  return out;
}

/// In fp32 for matrices as well-conditioned as random 2:1 matrices, otherwise in fp64.
std::optional<Dense> by_cholesky(const Dense& m) {
  constexpr float kSpanOfF32 = 8;
  constexpr double kSpanOfF64 = 1e4;
  auto q = by_cholesky<float>(m, kSpanOfF32);
  return q ? q : by_cholesky<double>(m, kSpanOfF64);
}

/// Of a matrix that is not wider than tall.
Dense by_reflections(const Dense& m) {
  const MatrixXf in = Eigen::Map<const RowMajor>(m.values.data(), m.rows, m.cols);
  const Eigen::HouseholderQR<MatrixXf> qr(in);
  MatrixXf q = qr.householderQ() * MatrixXf::Identity(m.rows, m.cols);
  for (int64_t c = 0; c < m.cols; ++c) {
    if (qr.matrixQR()(c, c) < 0) q.col(c) *= -1.0f;
  }
  Dense out{m.rows, m.cols, std::vector<float>(m.values.size())};
  Eigen::Map<RowMajor>(out.values.data(), m.rows, m.cols) = q;
  return out;
}

}  // namespace

Dense orthonormal(const Dense& m) {
  fix_block_sizes();
  if (auto q = by_cholesky(m)) return *std::move(q);
  return m.rows >= m.cols ? by_reflections(m) : transposed(by_reflections(transposed(m)));
}

Dense orthonormal_columns(const Dense& m) {
  COPPICE_CHECK(m.rows >= m.cols);
  return orthonormal(m);
}

}  // namespace coppice::matrix
