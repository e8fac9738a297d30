#include <Eigen/QR>

#include "coppice/base/check.h"
#include "coppice/upcycle/dense_detail.h"

namespace coppice::upcycle {

Dense orthonormal_columns(const Dense& m) {
  COPPICE_CHECK(m.rows >= m.cols);
  fix_block_sizes();
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::MatrixXf in = Eigen::Map<const RowMajor>(m.values.data(), m.rows, m.cols);
  const Eigen::HouseholderQR<Eigen::MatrixXf> qr(in);
  const Eigen::MatrixXf q = qr.householderQ() * Eigen::MatrixXf::Identity(m.rows, m.cols);
  Dense out{m.rows, m.cols, std::vector<float>(m.values.size())};
  for (int64_t c = 0; c < m.cols; ++c) {
    const float sign = qr.matrixQR()(c, c) < 0 ? -1.0f : 1.0f;
    for (int64_t r = 0; r < m.rows; ++r) out.at(r, c) = sign * q(r, c);
  }
  return out;
}

}  // namespace coppice::upcycle
