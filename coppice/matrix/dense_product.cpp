#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <mutex>

#include "coppice/base/check.h"
#include "coppice/matrix/dense.h"

namespace coppice::matrix {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Eigen::Map<const RowMajor> view(const Dense& m) { return {m.values.data(), m.rows, m.cols}; }

Dense dense(const RowMajor& m) { return {m.rows(), m.cols(), std::vector<float>(m.data(), m.data() + m.size())}; }

/// By power iteration from a vector of ones with a ramp, which is not orthogonal to any eigenvector.
float largest_eigenvalue(const RowMajor& gram) {
  constexpr int kIterations = 60;
  Eigen::VectorXf x = Eigen::VectorXf::LinSpaced(gram.rows(), 1.0f, 2.0f).normalized();
  float value = 0;
  for (int i = 0; i < kIterations; ++i) {
    const Eigen::VectorXf next = gram * x;
    value = next.norm();
    if (value == 0) break;
    x = next / value;
  }
  return value;
}

}  // namespace

void fix_block_sizes() {
  static std::once_flag once;
  std::call_once(once, [] { Eigen::setCpuCacheSizes(32 << 10, 1 << 20, 8 << 20); });
}

Dense transposed(const Dense& m) {
  Dense out{m.cols, m.rows, std::vector<float>(m.values.size())};
  constexpr int64_t kTile = 16;  // a cache line each way
  for (int64_t r0 = 0; r0 < m.rows; r0 += kTile) {
    for (int64_t c0 = 0; c0 < m.cols; c0 += kTile) {
      for (int64_t r = r0; r < std::min(r0 + kTile, m.rows); ++r) {
        for (int64_t c = c0; c < std::min(c0 + kTile, m.cols); ++c) out.at(c, r) = m.at(r, c);
      }
    }
  }
  return out;
}

Dense product(const Dense& a, std::span<const float> s, const Dense& b) {
  COPPICE_CHECK(a.cols == b.cols && static_cast<size_t>(a.cols) == s.size());
  fix_block_sizes();
  const Eigen::Map<const Eigen::VectorXf> scale(s.data(), static_cast<Eigen::Index>(s.size()));
  const RowMajor scaled = view(a) * scale.asDiagonal();
  return dense(scaled * view(b).transpose());
}

Dense product(const Dense& a, const Dense& b) {
  COPPICE_CHECK(a.cols == b.rows);
  fix_block_sizes();
  return dense(view(a) * view(b));
}

Dense sparse_codes(const Dense& dictionary, const Dense& x, double penalty, int iterations) {
  COPPICE_CHECK(dictionary.rows == x.rows);
  fix_block_sizes();
  const RowMajor gram = view(dictionary).transpose() * view(dictionary);
  const RowMajor correlation = view(dictionary).transpose() * view(x);
  const float largest = largest_eigenvalue(gram);
  RowMajor codes = RowMajor::Zero(correlation.rows(), correlation.cols());
  if (largest == 0) return dense(codes);
  const float step = 1.0f / largest;
  const auto threshold = static_cast<float>(step * penalty);
  RowMajor gradient(correlation.rows(), correlation.cols());
  for (int i = 0; i < iterations; ++i) {
    gradient.noalias() = gram * codes;
    gradient -= correlation;
    codes -= step * gradient;
    codes.array() -= codes.array().max(-threshold).min(threshold);  // towards 0 by the threshold
  }
  return dense(codes);
}

}  // namespace coppice::matrix
