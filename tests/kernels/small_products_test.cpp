#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <vector>

#include "coppice/kernels/cpu/small_products_detail.h"

namespace coppice::kernels::cpu {
namespace {

/// The loops that this processor can run.
std::vector<const Lanes*> all_lanes() {
  std::vector<const Lanes*> all{&kLanesOfAvx2};
  if (this_processor().avx512) all.push_back(&kLanesOfAvx512);
  return all;
}

void expect_close(const at::Tensor& found, const at::Tensor& a, const at::Tensor& b) {
  const auto wanted = at::mm(a.to(at::kDouble), b.to(at::kDouble));
  EXPECT_LE((found.to(at::kDouble) - wanted).abs().max().item<double>(), 1e-6 * static_cast<double>(a.size(1)));
}

// Every number of rows up to a block and its rest, and sums of more than one block.
TEST(LanesMultiply, IsTheProductForAllLayoutsWithTheSameBitsOnAllProcessors) {
  for (const int64_t inner : {1, 16, 37, 256, 300}) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 31, 64}) {
      for (const int64_t cols : {16, 48, 112}) {
        const auto a = at::randn({rows, inner}), b = at::randn({inner, cols});
        const auto a_turned = a.t().contiguous().t(), b_turned = b.t().contiguous().t();
        at::Tensor first;
        for (const auto& left : {a, a_turned}) {
          for (const auto& right : {b, b_turned}) {
            for (const Lanes* const lanes : all_lanes()) {
              const auto out = at::full({rows, cols}, 7.0f);
              lanes->multiply(Matrix::of(left), Matrix::of(right), out.mutable_data_ptr<float>(), cols, /*add=*/false);
              if (!first.defined()) first = out;
              EXPECT_TRUE(out.equal(first));
            }
          }
        }
        expect_close(first, a, b);
      }
    }
  }
}

TEST(LanesMultiply, AddsToWhatIsThereAndStaysInItsColumns) {
  for (const Lanes* const lanes : all_lanes()) {
    const auto a = at::randn({9, 20}), b = at::randn({20, 32});
    const auto out = at::full({9, 40}, 2.0f);
    lanes->multiply(Matrix::of(a), Matrix::of(b), out.mutable_data_ptr<float>(), 40, /*add=*/true);
    expect_close(out.narrow(1, 0, 32) - 2, a, b);
    EXPECT_TRUE(out.narrow(1, 32, 8).eq(2).all().item<bool>());
  }
}

TEST(LanesMultiply, GivesTheSameBitsForAnyCut) {
  for (const Lanes* const lanes : all_lanes()) {
    const auto a = at::randn({50, 300}), b = at::randn({300, 64});
    const auto whole = at::full({50, 64}, 0.0f), parts = at::full({50, 64}, 0.0f);
    const Matrix left = Matrix::of(a), right = Matrix::of(b);
    lanes->multiply(left, right, whole.mutable_data_ptr<float>(), 64, false);
    for (int64_t row = 0; row < 50; row += 10) {
      for (int64_t col = 0; col < 64; col += 32) {
        lanes->multiply(left.rows_from(row, 10), right.cols_from(col, 32),
                        parts.mutable_data_ptr<float>() + row * 64 + col, 64, false);
      }
    }
    EXPECT_TRUE(whole.equal(parts));
  }
}

TEST(LanesOf, AreThoseThatTheProcessorHas) {
  EXPECT_EQ(&lanes_of({}), &kLanesOfAvx2);
  EXPECT_EQ(&lanes_of({.avx512 = true}), &kLanesOfAvx512);
}

TEST(IsSmallProduct, HoldsForNarrowF32) {
  EXPECT_TRUE(is_small_product(1000, 128, at::kFloat));
  EXPECT_FALSE(is_small_product(1000, 144, at::kFloat));
  EXPECT_FALSE(is_small_product(1000, 24, at::kFloat));
  EXPECT_FALSE(is_small_product(0, 16, at::kFloat));
  EXPECT_FALSE(is_small_product(1000, 128, at::kBFloat16));
}

TEST(MultiplyInto, TakesAnyProduct) {
  for (const int64_t cols : {5, 64, 512}) {
    const auto a = at::randn({8, 24}), b = at::randn({24, cols}), out = at::full({8, cols}, 0.0f);
    multiply_into(out.mutable_data_ptr<float>(), Matrix::of(a), Matrix::of(b));
    expect_close(out, a, b);
    const auto bias = at::randn({cols});
    multiply_into(out.mutable_data_ptr<float>(), Matrix::of(a), Matrix::of(b), bias.const_data_ptr<float>());
    expect_close(out - bias, a, b);
  }
}

}  // namespace
}  // namespace coppice::kernels::cpu
