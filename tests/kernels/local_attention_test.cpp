#include "coppice/kernels/attention.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <vector>

#include "coppice/kernels/attention.h"
#include "tests/guarded/devices.h"

namespace coppice::kernels {
namespace {

// B sequences, S positions, H query heads, J key heads, C head dimension.
constexpr int64_t kSequences = 2, kPositions = 21, kHeads = 6, kKeyHeads = 2, kDim = 8;
constexpr double kScale = 0.17;

at::Tensor of_heads(int64_t heads) { return at::randn({kSequences, kPositions, heads, kDim}); }

/// Query, key, value and, if asked for, the sinks.
std::vector<at::Tensor> make_inputs(bool with_sinks) {
  at::manual_seed(3);
  std::vector<at::Tensor> in{of_heads(kHeads), of_heads(kKeyHeads), of_heads(kKeyHeads)};
  if (with_sinks) in.push_back(at::randn({kHeads}));
  return in;
}

/// By the definition: scores of all pairs, those out of sight hidden, the sink as one more score that is dropped.
at::Tensor plain(const std::vector<at::Tensor>& in, int64_t window) {
  const auto heads = [](const at::Tensor& x) { return x.repeat_interleave(kHeads / x.size(2), 2).transpose(1, 2); };
  auto score = at::matmul(heads(in[0]), heads(in[1]).transpose(2, 3)) * kScale;
  const auto all = at::ones({kPositions, kPositions}, at::kBool);
  auto hidden = all.triu(1);
  if (window > 0) hidden = hidden.logical_or(all.tril(-window));
  score = score.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  if (in.size() > 3) score = at::cat({score, in[3].view({1, -1, 1, 1}).expand({kSequences, -1, kPositions, 1})}, -1);
  return at::matmul(at::softmax(score, -1).narrow(3, 0, kPositions), heads(in[2])).transpose(1, 2);
}

template <class F>
std::vector<at::Tensor> run(std::vector<at::Tensor> in, at::ScalarType dtype, const F& attention) {
  for (auto& t : in) t = t.to(dtype).set_requires_grad(true);
  const auto out = attention(in);
  at::manual_seed(9);
  auto results = torch::autograd::grad({out}, in, {at::randn(out.sizes()).to(dtype)});
  results.insert(results.begin(), out.detach());
  return results;
}

at::Tensor local(const std::vector<at::Tensor>& in, int64_t window) {
  return local_attention(in[0], in[1], in[2], kScale, window, in.size() > 3 ? in[3] : at::Tensor());
}

void expect_near(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& wanted, double tolerance) {
  for (size_t i = 0; i < found.size(); ++i) {
    const auto scale = wanted[i].abs().max().item<double>();
    EXPECT_LE((found[i].to(at::kDouble) - wanted[i]).abs().max().item<double>(), tolerance * scale + 1e-6)
        << i;  // a window of 1 has no slope
  }
}

class LocalAttention : public ::testing::TestWithParam<std::tuple<int64_t, bool>> {};
INSTANTIATE_TEST_SUITE_P(Windows, LocalAttention,
                         ::testing::Combine(::testing::Values<int64_t>(0, 1, 5, kPositions, 100), ::testing::Bool()));

TEST_P(LocalAttention, OutputAndGradientsMatchTheDefinitionInF64) {
  const auto [window, with_sinks] = GetParam();
  const auto in = make_inputs(with_sinks);
  const auto wanted = run(in, at::kDouble, [&](const auto& x) { return plain(x, window); });
  expect_near(run(in, at::kFloat, [&](const auto& x) { return local(x, window); }), wanted, 1e-5);
}

TEST_P(LocalAttention, OnAnotherDeviceIsTheSameToRounding) {
  const auto [window, with_sinks] = GetParam();
  const auto in = make_inputs(with_sinks);
  const auto wanted = run(in, at::kDouble, [&](const auto& x) { return local(x, window); });
  const auto found = run(in, at::kFloat, [&](const auto& x) {
    std::vector<at::Tensor> there;
    for (const auto& t : x) there.push_back(t.to(guarded::kGuarded));
    return local(there, window).to(at::kCPU);
  });
  expect_near(found, wanted, 1e-5);
}

TEST(LocalAttentionWithoutWindow, IsCausalAttention) {
  const auto in = make_inputs(false);
  const auto all = causal_attention(in[0], in[1], in[2], kScale), local_one = local(in, kPositions);
  EXPECT_LE((all - local_one).abs().max().item<float>(), 1e-5f);
}

// A sink far above every score takes all of the softmax; one far below none.
TEST(AttentionSink, TakesItsShare) {
  auto in = make_inputs(true);
  in[3] = at::ones({kHeads}) * 60;
  EXPECT_LE(local(in, 0).abs().max().item<float>(), 1e-6f);
  in[3] = at::ones({kHeads}) * -60;
  const auto all = causal_attention(in[0], in[1], in[2], kScale);
  EXPECT_LE((all - local(in, 0)).abs().max().item<float>(), 1e-5f);
}

}  // namespace
}  // namespace coppice::kernels
