#include "coppice/kernels/attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/triu.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <vector>

namespace coppice::kernels {
namespace {

// B sequences, S positions, H query heads, J key heads, C head dimension.
struct Case {
  int64_t sequences, positions, heads, key_heads, dim;
};

struct Inputs {
  at::Tensor query_BSHC, key_BSJC, value_BSJC, grad_BSHC;

  static Inputs random(const Case& c, at::ScalarType dtype) {
    at::manual_seed(static_cast<uint64_t>(c.positions + c.heads));
    const auto of = [&](int64_t heads) { return at::randn({c.sequences, c.positions, heads, c.dim}).to(dtype); };
    return {of(c.heads), of(c.key_heads), of(c.key_heads), of(c.heads)};
  }
  Inputs in_f64() const {
    return {query_BSHC.to(at::kDouble), key_BSJC.to(at::kDouble), value_BSJC.to(at::kDouble),
            grad_BSHC.to(at::kDouble)};
  }
};

constexpr double kScale = 0.17;

at::Tensor plain(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  const int64_t group = query.size(2) / key.size(2), positions = query.size(1);
  const auto heads = [&](const at::Tensor& x, int64_t times) { return x.repeat_interleave(times, 2).transpose(1, 2); };
  const auto score = at::matmul(heads(query, 1), heads(key, group).transpose(2, 3)) * kScale;
  const auto hidden = at::triu(at::ones({positions, positions}, at::kBool), 1);
  const auto weight = at::softmax(score.masked_fill(hidden, -std::numeric_limits<double>::infinity()), -1);
  return at::matmul(weight, heads(value, group)).transpose(1, 2);
}

/// Output, then gradients of query, key and value.
template <class F>
std::vector<at::Tensor> run(const Inputs& in, F attention) {
  std::vector<at::Tensor> leaves;
  for (const auto& t : {in.query_BSHC, in.key_BSJC, in.value_BSJC}) leaves.push_back(t.clone().set_requires_grad(true));
  const auto out = attention(leaves[0], leaves[1], leaves[2]);
  auto results = torch::autograd::grad({out}, leaves, {in.grad_BSHC});
  results.insert(results.begin(), out.detach());
  return results;
}

std::vector<at::Tensor> run(const Inputs& in) {
  return run(in, [](const auto& q, const auto& k, const auto& v) { return causal_attention(q, k, v, kScale); });
}

class CausalAttention : public ::testing::TestWithParam<Case> {};
// Those whose positions and dimension are multiples of 32 run on kernels of our own, where the processor has AVX-512.
INSTANTIATE_TEST_SUITE_P(Sizes, CausalAttention,
                         ::testing::Values(Case{2, 64, 2, 2, 32}, Case{1, 96, 4, 2, 64}, Case{3, 32, 6, 1, 32},
                                           Case{1, 160, 1, 1, 96}, Case{2, 7, 2, 1, 8}, Case{1, 40, 2, 2, 32}));

TEST_P(CausalAttention, IsTheOneOfTheFormula) {
  for (const auto& [dtype, tolerance] : {std::pair(at::kFloat, 5e-6), std::pair(at::kBFloat16, 2e-2)}) {
    const auto in = Inputs::random(GetParam(), dtype);
    const auto found = run(in), wanted = run(in.in_f64(), plain);
    for (size_t i = 0; i < wanted.size(); ++i) {
      const double scale = wanted[i].abs().max().item<double>();
      EXPECT_LE((found[i].to(at::kDouble) - wanted[i]).abs().max().item<double>(), tolerance * scale)
          << dtype << " result " << i;
      EXPECT_EQ(found[i].scalar_type(), dtype);
    }
  }
}

TEST_P(CausalAttention, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto in = Inputs::random(GetParam(), at::kBFloat16);
  at::set_num_threads(1);
  const auto wanted = run(in);
  at::set_num_threads(3);
  const auto found = run(in);
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_TRUE(at::equal(found[i], wanted[i])) << i;
}

TEST(CausalAttentionScores, MayBeLargeAndAlike) {
  auto in = Inputs::random({1, 64, 1, 1, 32}, at::kFloat);
  in.query_BSHC *= 200;
  in.key_BSJC = at::full(in.key_BSJC.sizes(), 30.0f);
  for (const auto& result : run(in)) EXPECT_TRUE(result.isfinite().all().item<bool>());
}

}  // namespace
}  // namespace coppice::kernels
