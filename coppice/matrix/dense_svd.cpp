#include <Eigen/SVD>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/matrix/dense.h"

namespace coppice::matrix {
namespace {

Dense row_major(const Eigen::MatrixXf& m) {
  Dense out{m.rows(), m.cols(), std::vector<float>(static_cast<size_t>(m.size()))};
  for (int64_t r = 0; r < out.rows; ++r) {
    for (int64_t c = 0; c < out.cols; ++c) out.at(r, c) = m(r, c);
  }
  return out;
}

}  // namespace

Svd singular_values(const Dense& m) {
  fix_block_sizes();
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::MatrixXf in = Eigen::Map<const RowMajor>(m.values.data(), m.rows, m.cols);
  const Eigen::BDCSVD<Eigen::MatrixXf> svd(in, Eigen::ComputeThinU | Eigen::ComputeThinV);
  if (svd.info() != Eigen::Success) {
    throw Error(ErrorCode::kUnsupported,
                cat("a matrix of ", m.rows, " x ", m.cols,
                    ": its singular values do not converge (choose a method that does not decompose matrices)"));
  }
  Eigen::MatrixXf u = svd.matrixU(), v = svd.matrixV();
  for (int64_t c = 0; c < u.cols(); ++c) {
    Eigen::Index largest = 0;
    u.col(c).cwiseAbs().maxCoeff(&largest);
    if (u(largest, c) >= 0) continue;
    u.col(c) = -u.col(c);
    v.col(c) = -v.col(c);
  }
  const auto& s = svd.singularValues();
  return {row_major(u), std::vector<float>(s.data(), s.data() + s.size()), row_major(v)};
}

}  // namespace coppice::matrix
