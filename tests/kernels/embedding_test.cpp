#include "coppice/kernels/embedding.h"

#include <ATen/Parallel.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "tests/guarded/devices.h"

namespace coppice::kernels {
namespace {

constexpr int64_t kRows = 41, kDim = 24, kTokens = 3000;  // every row many times; row 7 never

struct Inputs {
  at::Tensor table_VD, ids_T, grad_TD;

  static Inputs random(at::ScalarType dtype) {
    at::manual_seed(5);
    const auto ids_T = at::randint(0, kRows, {kTokens}, at::kLong);
    return {at::randn({kRows, kDim}).to(dtype), ids_T.masked_fill(ids_T == 7, 8), at::randn({kTokens, kDim})};
  }
};

/// Rows, and the table's gradient.
template <class F>
std::vector<at::Tensor> run(const Inputs& in, at::Device device, const F& f) {
  const auto table_VD = in.table_VD.to(device).detach().clone().set_requires_grad(true);
  const auto rows_TD = f(table_VD, in.ids_T.to(device));
  EXPECT_EQ(rows_TD.scalar_type(), at::kFloat);
  const auto grad = torch::autograd::grad({rows_TD}, {table_VD}, {in.grad_TD.to(device)});
  return {rows_TD.detach().to(at::kCPU), grad[0].to(at::kCPU)};
}

/// What it replaces: rows of the whole table in f32.
at::Tensor of_wide_table(const at::Tensor& table_VD, const at::Tensor& ids_T) {
  return at::embedding(table_VD.to(at::kFloat), ids_T);
}

class EmbedOn : public ::testing::TestWithParam<at::Device> {};
INSTANTIATE_TEST_SUITE_P(Devices, EmbedOn, guarded::both_devices(), guarded::device_name);

TEST_P(EmbedOn, GivesTheBitsOfATableInF32) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto in = Inputs::random(dtype);
    const auto found = run(in, GetParam(), embed), wanted = run(in, guarded::kCpu, of_wide_table);
    EXPECT_EQ(found[1].scalar_type(), dtype);
    for (size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(at::equal(found[i], wanted[i])) << dtype << ' ' << i;
    EXPECT_EQ(found[1][7].abs().max().item<float>(), 0.0f);
  }
}

TEST_P(EmbedOn, RefusesAnIdOutsideTheTable) {
  const auto in = Inputs::random(at::kFloat);
  for (const int64_t wrong : {int64_t{-1}, kRows}) {
    EXPECT_ANY_THROW((void)embed(in.table_VD.to(GetParam()), at::tensor({wrong}, at::kLong).to(GetParam())));
  }
}

TEST_P(EmbedOn, SumsRowsAsItsGradientDoes) {
  const auto in = Inputs::random(at::kFloat);
  const auto found = sum_rows(in.grad_TD.to(GetParam()), in.ids_T.to(GetParam()), kRows);
  EXPECT_TRUE(at::equal(found.to(at::kCPU), run(in, guarded::kCpu, of_wide_table)[1]));
}

TEST(Embed, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto in = Inputs::random(at::kBFloat16);
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const auto wanted = run(in, guarded::kCpu, embed);
  at::set_num_threads(3);
  EXPECT_TRUE(at::equal(run(in, guarded::kCpu, embed)[1], wanted[1]));
  at::set_num_threads(before);
}

}  // namespace
}  // namespace coppice::kernels
