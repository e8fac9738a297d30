#include "coppice/kernels/sum_of_squares.h"

#include <algorithm>
#include <array>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/kernels/parallel.h"
#include "coppice/kernels/vector_math_detail.h"

namespace coppice::kernels {
namespace {

constexpr int64_t kBlock = int64_t{1} << 16;
constexpr int64_t kLanes = 16;

template <class T>
double block_sum(const T* x, int64_t count) {
  std::array<double, kLanes> lanes{};
  const auto square = [&](int64_t at) {
    const auto value = static_cast<double>(detail::load(x[at]));
    return value * value;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += square(i + j);
  }
  for (int64_t j = 0; i < count; ++i, ++j) lanes[j] += square(i);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

double sum_of_squares(const at::Tensor& values) {
  COPPICE_CHECK(values.is_contiguous());
  const int64_t count = values.numel(), blocks = (count + kBlock - 1) / kBlock;
  std::vector<double> partial(static_cast<size_t>(blocks));
  detail::with_scalar(values, [&]<class T>(T) {
    const T* x = values.const_data_ptr<T>();
    parallel_tasks(blocks, [&](int64_t b) {
      partial[static_cast<size_t>(b)] = block_sum(x + b * kBlock, std::min(kBlock, count - b * kBlock));
    });
  });
  double sum = 0;
  for (const double p : partial) sum += p;
  return sum;
}

}  // namespace coppice::kernels
