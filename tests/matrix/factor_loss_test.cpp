#include "coppice/matrix/factor_loss.h"

#include <gtest/gtest.h>

#include <vector>

namespace coppice::matrix {
namespace {

double loss_of(io::Dtype dtype, const std::vector<float>& values, double factor) {
  std::vector<std::byte> bytes(values.size() * io::dtype_bytes(dtype));
  io::from_f32(dtype, values, bytes);
  return factor_loss(dtype, bytes, factor);
}

TEST(FactorLoss, IsNothingWhereDigitsAreKept) {
  const std::vector<float> values{1.5f, -3.0f, 0.0f, 0.0078125f};
  for (const io::Dtype dtype : {io::Dtype::kF32, io::Dtype::kBf16, io::Dtype::kF16}) {
    for (const double factor : {0.5, 1.0, 2.0, 0.25, 3.0}) EXPECT_EQ(loss_of(dtype, values, factor), 0) << factor;
  }
  EXPECT_EQ(loss_of(io::Dtype::kF32, {1.1f, 0.3f}, 1.0 / 3), 0) << "fp32 sums lose as much";
  EXPECT_EQ(loss_of(io::Dtype::kBf16, {}, 1.0 / 3), 0);
}

// A third of 1 is 0.333984375 in bf16 (171 / 512): three times that is off by 1 / 512.
TEST(FactorLoss, IsTheLargestErrorInUnitsOfTheLargestValue) {
  EXPECT_DOUBLE_EQ(loss_of(io::Dtype::kBf16, {1.0f, 0.0f}, 1.0 / 3), 3 * 171.0 / 512 - 1);
  EXPECT_DOUBLE_EQ(loss_of(io::Dtype::kBf16, {1.0f, 3.0f}, 1.0 / 3), (3 * 171.0 / 512 - 1) / 3);
}

TEST(FactorLoss, FindsHalvesBelowTheNormalNumbersOfF16) {
  const float smallest = 0x1p-24f;
  EXPECT_EQ(loss_of(io::Dtype::kF16, {2 * smallest}, 0.5), 0);
  EXPECT_DOUBLE_EQ(loss_of(io::Dtype::kF16, {3 * smallest}, 0.5), 1.0 / 3);
  EXPECT_EQ(loss_of(io::Dtype::kF16, {3 * smallest, 1.0f}, 0.5), 0) << "what a large value beside it swallows";
}

}  // namespace
}  // namespace coppice::matrix
