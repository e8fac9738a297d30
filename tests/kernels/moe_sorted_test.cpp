// What a GPU does for the MoE layer, its pieces run one after the other on the host.

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <vector>

#include "coppice/io/dtype.h"
#include "coppice/kernels/cpu/moe_rows_detail.h"
#include "coppice/kernels/cuda/moe_sorted_detail.h"
#include "coppice/kernels/cuda/sorted_rows_pieces_detail.h"
#include "coppice/kernels/moe.h"
#include "coppice/kernels/moe_detail.h"
#include "tests/kernels/moe_layers.h"
#include "tests/kernels/pieces_on_host.h"
#include "tests/testing/errors.h"

namespace coppice::kernels {
namespace {

using cuda::Bf16;
using cuda::ExpertGemms;
using testing::expect_near;
using testing::in_f64;
using testing::Layer;
using testing::LayerSizes;
using testing::make_layer;
using testing::OnHost;

template <class T>
std::vector<at::Tensor> run_as(const Layer& l, ExpertGemms kind) {
  const detail::MoeInputs in{l.x_TD, l.w_gate_up_EGD, l.w_down_EDF, l.index_TK, l.gate_TK};
  const auto out = cuda::SortedExperts<OnHost, T>(in, {}, kind).forward();
  const auto g = cuda::SortedExperts<OnHost, T>(in, {}, out).backward(out.hidden_PG, l.grad_TD);
  return {out.y_TD, g.x_TD, g.w_gate_up_EGD, g.w_down_EDF, g.gate_TK};
}

std::vector<at::Tensor> run(const Layer& l, ExpertGemms kind) {
  return l.x_TD.scalar_type() == at::kFloat ? run_as<float>(l, kind) : run_as<Bf16>(l, kind);
}

class SortedExperts : public ::testing::TestWithParam<LayerSizes> {
  void SetUp() override { at::set_num_threads(1); }
};
// Sizes with and without packs of 16 bytes; more pairs than one piece of the sort takes; experts without tokens.
INSTANTIATE_TEST_SUITE_P(Sizes, SortedExperts,
                         ::testing::Values(LayerSizes{1, 8, 4, 2, 16}, LayerSizes{3, 7, 5, 1, 9},
                                           LayerSizes{37, 33, 6, 3, 17}, LayerSizes{700, 24, 3, 2, 40},
                                           LayerSizes{50, 12, 40, 8, 10}, LayerSizes{1100, 16, 1, 1, 8},
                                           LayerSizes{300, 8, 64, 4, 1040}));

TEST_P(SortedExperts, GiveWhatTheReferenceGives) {
  for (const auto& [dtype, tolerance] : {std::pair(at::kFloat, 3e-6), std::pair(at::kBFloat16, 2e-2)}) {
    const auto layer = make_layer(GetParam(), dtype);
    const auto wanted = testing::run(in_f64(layer), MoeKernel::kReference);
    expect_near(run(layer, ExpertGemms::kLoop), wanted, tolerance);
    const detail::MoeInputs in{layer.x_TD, layer.w_gate_up_EGD, layer.w_down_EDF, layer.index_TK, layer.gate_TK};
    if (cuda::fits_grouped_gemm(in)) expect_near(run(layer, ExpertGemms::kGrouped), wanted, tolerance);
  }
}

TEST_P(SortedExperts, AreOrderedAsOnTheCpu) {
  const auto layer = make_layer(GetParam());
  const detail::MoeInputs in{layer.x_TD, layer.w_gate_up_EGD, layer.w_down_EDF, layer.index_TK, layer.gate_TK};
  const auto found = detail::room_for_order(in, cuda::most_rows(in.index_TK.numel(), in.w_down_EDF.size(0)));
  std::vector<int32_t> scratch(static_cast<size_t>(cuda::sort_scratch(found.order)));
  cuda::SortedRows<OnHost, float>({}, found.order).sort(scratch.data());
  const auto wanted = cpu::order_pairs(in, [](int64_t count) {
    return std::max(cuda::kRowQuantum, (count + cuda::kRowQuantum - 1) / cuda::kRowQuantum * cuda::kRowQuantum);
  });
  const int64_t last = wanted.order.rows;
  EXPECT_TRUE(at::equal(found.first_row, wanted.first_row));
  EXPECT_TRUE(at::equal(found.row_of_pair, wanted.row_of_pair));
  ASSERT_GE(found.order.rows, last);
  EXPECT_TRUE(at::equal(found.pair_of_row.narrow(0, 0, last), wanted.pair_of_row));
  for (int64_t row = last; row < found.order.rows; ++row) EXPECT_EQ(found.order.pair_of_row[row], -1);
}

TEST(SortedExpertsRouting, TakesAnyChoiceOfExperts) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    auto layer = make_layer({40, 16, 6, 1, 24}, dtype);
    layer.index_TK = at::full({40, 1}, 3, at::kLong);  // all tokens on one expert
    for (const auto kind : {ExpertGemms::kLoop, ExpertGemms::kGrouped}) {
      if (kind == ExpertGemms::kGrouped && dtype == at::kFloat) continue;
      const auto found = run(layer, kind);
      expect_near(found, testing::run(in_f64(layer), MoeKernel::kReference), dtype == at::kFloat ? 3e-6 : 2e-2);
      for (const int64_t e : {0, 1, 2, 4, 5}) {
        EXPECT_EQ(found[2][e].abs().max().item<float>(), 0.0f);
        EXPECT_EQ(found[3][e].abs().max().item<float>(), 0.0f);
      }
    }
  }
}

TEST(SortedExpertsRouting, NoTokensAreNoError) {
  auto layer = make_layer({1, 8, 3, 2, 4});
  for (at::Tensor* t : {&layer.x_TD, &layer.index_TK, &layer.gate_TK, &layer.grad_TD}) *t = t->narrow(0, 0, 0);
  const auto found = run(layer, ExpertGemms::kLoop);
  EXPECT_EQ(found[0].size(0), 0);
  EXPECT_EQ(found[2].abs().max().item<float>(), 0.0f);
}

TEST(SortedExpertsRouting, AnExpertThatDoesNotExistIsAnError) {
  for (const int64_t wrong : {-1, 3}) {
    auto layer = make_layer({4, 8, 3, 2, 6});
    layer.index_TK[2][1] = wrong;
    coppice::testing::expect_error(ErrorCode::kInternal, {"expert"}, [&] { run(layer, ExpertGemms::kLoop); });
  }
}

TEST(SortedExpertsGemms, AreGroupedWhereLibtorchCan) {
  const auto fits = [](const LayerSizes& sizes, at::ScalarType dtype) {
    const auto l = make_layer(sizes, dtype);
    return cuda::fits_grouped_gemm({l.x_TD, l.w_gate_up_EGD, l.w_down_EDF, l.index_TK, l.gate_TK});
  };
  EXPECT_TRUE(fits({3, 16, 1023, 2, 8}, at::kBFloat16));
  EXPECT_FALSE(fits({3, 16, 1024, 2, 8}, at::kBFloat16));
  EXPECT_FALSE(fits({3, 12, 4, 2, 8}, at::kBFloat16));
  EXPECT_FALSE(fits({3, 16, 4, 2, 12}, at::kBFloat16));
  EXPECT_FALSE(fits({3, 16, 4, 2, 8}, at::kFloat));
}

TEST(SortedExpertsRows, MayLieAtAnyAddress) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    auto layer = make_layer({30, 16, 5, 2, 8}, dtype);
    const auto wanted = run(layer, ExpertGemms::kLoop);
    for (at::Tensor* t : {&layer.x_TD, &layer.grad_TD}) {
      const auto shifted = at::empty({t->numel() + 1}, t->options()).narrow(0, 1, t->numel()).view(t->sizes());
      shifted.copy_(*t);
      *t = shifted;
    }
    const auto found = run(layer, ExpertGemms::kLoop);
    for (size_t i = 0; i < wanted.size(); ++i) EXPECT_TRUE(at::equal(found[i], wanted[i])) << i;
  }
}

TEST(SortedExpertsBf16, RoundsAsEverywhereElse) {
  const float special[] = {0.0f,
                           -0.0f,
                           1.0f,
                           std::numeric_limits<float>::infinity(),
                           3.4e38f,
                           1e-40f,
                           std::numeric_limits<float>::quiet_NaN()};
  at::manual_seed(4);
  const auto bits = at::randint(0, int64_t{1} << 32, {100000}, at::kLong);
  const auto check = [](float value) {
    Bf16 found{};
    cuda::narrow_to(found, value);
    EXPECT_EQ(found.bits, io::bf16_from_f32(value)) << value;
    const float back = cuda::widened(found), wanted = io::f32_from_bf16(found.bits);
    EXPECT_EQ(std::bit_cast<uint32_t>(back), std::bit_cast<uint32_t>(wanted));
  };
  for (const float value : special) check(value);
  for (int64_t i = 0; i < bits.numel(); ++i) {
    check(std::bit_cast<float>(static_cast<uint32_t>(bits.const_data_ptr<int64_t>()[i])));
  }
}

}  // namespace
}  // namespace coppice::kernels
