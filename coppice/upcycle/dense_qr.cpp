#include <Eigen/Cholesky>
#include <Eigen/QR>
#include <optional>

#include "coppice/base/check.h"
#include "coppice/upcycle/dense_detail.h"

namespace coppice::upcycle {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Eigen::MatrixXd;
using Eigen::MatrixXf;

/// Q = A R^-1 with R from the Cholesky decomposition of A'A, in fp64: nearly all of it matrix products, some three times
/// as fast as reflections. Its columns are orthogonal to condition^2 * 1e-16; none where that is no longer below fp32.
///
/// Source   Yamamoto, Nakatsukasa, Yanagisawa, Fukaya: Roundoff error analysis of the CholeskyQR2 algorithm (ETNA 2015).
std::optional<MatrixXf> by_cholesky(const Dense& m) {
  constexpr double kSmallestRatio = 1e-4;  // of R's diagonal: about 1 / condition
  MatrixXd a = Eigen::Map<const RowMajor>(m.values.data(), m.rows, m.cols).cast<double>();
  MatrixXd gram = MatrixXd::Zero(m.cols, m.cols);
  gram.selfadjointView<Eigen::Lower>().rankUpdate(a.transpose());
  const Eigen::LLT<MatrixXd> decomposed(gram);
  if (decomposed.info() != Eigen::Success) return std::nullopt;
  const auto diagonal = decomposed.matrixLLT().diagonal();
  if (!(diagonal.minCoeff() > kSmallestRatio * diagonal.maxCoeff())) return std::nullopt;
  decomposed.matrixU().solveInPlace<Eigen::OnTheRight>(a);
  return a.cast<float>();
}

MatrixXf by_reflections(const Dense& m) {
  const MatrixXf in = Eigen::Map<const RowMajor>(m.values.data(), m.rows, m.cols);
  const Eigen::HouseholderQR<MatrixXf> qr(in);
  MatrixXf q = qr.householderQ() * MatrixXf::Identity(m.rows, m.cols);
  for (int64_t c = 0; c < m.cols; ++c) {
    if (qr.matrixQR()(c, c) < 0) q.col(c) *= -1.0f;
  }
  return q;
}

}  // namespace

Dense orthonormal_columns(const Dense& m) {
  COPPICE_CHECK(m.rows >= m.cols);
  fix_block_sizes();
  const auto fast = by_cholesky(m);
  const MatrixXf q = fast ? *fast : by_reflections(m);
  Dense out{m.rows, m.cols, std::vector<float>(m.values.size())};
  Eigen::Map<RowMajor>(out.values.data(), m.rows, m.cols) = q;
  return out;
}

}  // namespace coppice::upcycle
