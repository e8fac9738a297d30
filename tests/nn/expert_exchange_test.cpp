// A layer of experts over ranks gives what it gives on one.
#include "coppice/nn/expert_exchange.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <vector>

#include "coppice/dist/world.h"
#include "coppice/kernels/routing.h"
#include "coppice/nn/host.h"
#include "tests/dist/thread_ranks.h"

namespace coppice::nn {
namespace {

using kernels::MoeKernel;

constexpr int64_t kDim = 32, kWidth = 20, kExperts = 6, kChoices = 3;

struct Layer {
  at::Tensor gate_up_EGD, down_EDF, gate_up_bias_EG, down_bias_ED;
};

// What all ranks together have, and its gradient at the output.
struct Case {
  Layer layer;
  at::Tensor x_TD, index_TK, gate_TK, grad_TD;
  std::vector<int64_t> tokens;  // of each rank
};

Case make_case(const std::vector<int64_t>& tokens, at::ScalarType dtype, bool biases) {
  at::manual_seed(4);
  int64_t all = 0;
  for (const int64_t n : tokens) all += n;
  const auto weight = [&](at::IntArrayRef sizes) { return (at::randn(sizes) * 0.3).to(dtype); };
  Case c;
  c.layer = {weight({kExperts, 2 * kWidth, kDim}), weight({kExperts, kDim, kWidth}), {}, {}};
  if (biases) {
    c.layer.gate_up_bias_EG = weight({kExperts, 2 * kWidth});
    c.layer.down_bias_ED = weight({kExperts, kDim});
  }
  c.x_TD = at::randn({all, kDim}).to(dtype);
  // Different experts for every slot of a token.
  c.index_TK = at::rand({all, kExperts}).argsort(int64_t{1}, false).narrow(1, 0, kChoices).contiguous();
  c.gate_TK = at::rand({all, kChoices});
  c.grad_TD = at::randn({all, kDim}).to(dtype);
  c.tokens = tokens;
  return c;
}

struct Result {
  at::Tensor y_TD, grad_x_TD, grad_gate_TK, pair_sq_TK;
  Layer grad;
};

// `run` computes y of leaves.
template <class Run>
Result differentiate(const Layer& layer, const at::Tensor& x_TD, const at::Tensor& gate_TK, const at::Tensor& grad_TD,
                     const Run& run) {
  const auto leaf = [](const at::Tensor& t) { return t.defined() ? t.detach().clone().set_requires_grad(true) : t; };
  const Layer w{leaf(layer.gate_up_EGD), leaf(layer.down_EDF), leaf(layer.gate_up_bias_EG), leaf(layer.down_bias_ED)};
  const auto x = leaf(x_TD), gate = leaf(gate_TK);
  const kernels::ExpertForm form{
      w.gate_up_bias_EG.defined() ? kernels::ExpertActivation::kClampedSwiglu : kernels::ExpertActivation::kSwiglu,
      w.gate_up_bias_EG, w.down_bias_ED};
  Result out;
  const auto y = run(w, x, gate, form, &out.pair_sq_TK);
  y.backward(grad_TD);
  const auto grad = [](const at::Tensor& t) { return t.defined() ? t.grad() : at::Tensor(); };
  out.y_TD = y.detach();
  out.grad_x_TD = x.grad();
  out.grad_gate_TK = gate.grad();
  out.grad = {grad(w.gate_up_EGD), grad(w.down_EDF), grad(w.gate_up_bias_EG), grad(w.down_bias_ED)};
  return out;
}

Result alone(const Case& c, MoeKernel kernel = MoeKernel::kFast) {
  return differentiate(c.layer, c.x_TD, c.gate_TK, c.grad_TD,
                       [&](const Layer& w, const at::Tensor& x, const at::Tensor& gate, const auto& form, auto* sq) {
                         return kernels::moe_experts(x, w.gate_up_EGD, w.down_EDF, c.index_TK, gate, kernel, form, sq);
                       });
}

Result of_rank(const Case& c, dist::World& world, const ExpertPlacement& placement, MoeKernel kernel) {
  int64_t begin = 0;
  for (int64_t r = 0; r < world.rank(); ++r) begin += c.tokens[static_cast<size_t>(r)];
  const int64_t count = c.tokens[static_cast<size_t>(world.rank())];
  const auto mine = [&](const at::Tensor& t) { return t.narrow(0, begin, count).contiguous(); };
  const auto own = placement.experts_of(world.experts().rank());
  const auto of_own = [&](const at::Tensor& t) {
    return t.defined() ? t.index_select(0, from_host<int64_t>(own, {std::ssize(own)}, at::kCPU)) : t;
  };
  const ExpertExchange exchange(world.experts(), placement, at::kCPU);
  const auto index_TK = mine(c.index_TK);
  const auto count_E = kernels::expert_counts(index_TK, kExperts);
  return differentiate({of_own(c.layer.gate_up_EGD), of_own(c.layer.down_EDF), of_own(c.layer.gate_up_bias_EG),
                        of_own(c.layer.down_bias_ED)},
                       mine(c.x_TD), mine(c.gate_TK), mine(c.grad_TD),
                       [&](const Layer& w, const at::Tensor& x, const at::Tensor& gate, const auto& form, auto* sq) {
                         return exchange.experts(x, w.gate_up_EGD, w.down_EDF, index_TK, gate, count_E, kernel, form,
                                                 sq);
                       });
}

void expect_close(const at::Tensor& found, const at::Tensor& wanted, double tolerance, const std::string& what) {
  ASSERT_EQ(found.defined(), wanted.defined()) << what;
  if (!found.defined()) return;
  ASSERT_EQ(found.sizes(), wanted.sizes()) << what;
  ASSERT_EQ(found.scalar_type(), wanted.scalar_type()) << what;
  if (found.numel() == 0) return;
  const auto a = found.to(at::kDouble), b = wanted.to(at::kDouble);
  EXPECT_LE((a - b).abs().max().item<double>(), tolerance * b.abs().max().item<double>()) << what;
}

// The results of all ranks, put together as those of one.
Result together(const Case& c, const ExpertPlacement& placement, MoeKernel kernel = MoeKernel::kFast) {
  const auto ranks = std::ssize(c.tokens);
  std::vector<Result> results(static_cast<size_t>(ranks));
  testing::run_ranks(ranks,
                     [&](dist::World& world) {
                       at::set_num_threads(1);
                       results[static_cast<size_t>(world.rank())] = of_rank(c, world, placement, kernel);
                     },
                     {.expert_parallel = ranks, .timeout = std::chrono::seconds(60)});
  const auto rows = [&](at::Tensor Result::* part) {
    std::vector<at::Tensor> parts;
    for (const Result& r : results) parts.push_back(r.*part);
    return at::cat(parts);
  };
  const auto experts = [&](at::Tensor Layer::* part) {
    std::vector<at::Tensor> parts(kExperts);
    for (int64_t r = 0; r < ranks; ++r) {
      const auto own = placement.experts_of(r);
      const auto& grad = results[static_cast<size_t>(r)].grad.*part;
      if (!grad.defined()) return at::Tensor();
      for (size_t i = 0; i < own.size(); ++i)
        parts[static_cast<size_t>(own[i])] = grad.narrow(0, static_cast<int64_t>(i), 1);
    }
    return at::cat(parts);
  };
  if (::testing::Test::HasFailure()) return {};
  return {rows(&Result::y_TD),
          rows(&Result::grad_x_TD),
          rows(&Result::grad_gate_TK),
          rows(&Result::pair_sq_TK),
          {experts(&Layer::gate_up_EGD), experts(&Layer::down_EDF), experts(&Layer::gate_up_bias_EG),
           experts(&Layer::down_bias_ED)}};
}

void expect_same(const Case& c, const ExpertPlacement& placement, double tolerance,
                 MoeKernel kernel = MoeKernel::kFast) {
  const Result wanted = alone(c, kernel), found = together(c, placement, kernel);
  if (::testing::Test::HasFailure()) return;
  expect_close(found.y_TD, wanted.y_TD, tolerance, "y");
  expect_close(found.grad_x_TD, wanted.grad_x_TD, tolerance, "gradient of x");
  expect_close(found.grad_gate_TK, wanted.grad_gate_TK, tolerance, "gradient of gates");
  expect_close(found.pair_sq_TK, wanted.pair_sq_TK, tolerance, "squared norms");
  expect_close(found.grad.gate_up_EGD, wanted.grad.gate_up_EGD, tolerance, "gradient of gate and up");
  expect_close(found.grad.down_EDF, wanted.grad.down_EDF, tolerance, "gradient of down");
  expect_close(found.grad.gate_up_bias_EG, wanted.grad.gate_up_bias_EG, tolerance, "gradient of the gate's bias");
  expect_close(found.grad.down_bias_ED, wanted.grad.down_bias_ED, tolerance, "gradient of down's bias");
}

constexpr double kF32 = 1e-6, kBf16 = 2e-2;  // bf16: outputs and gradients of pairs are rounded once more

TEST(ExpertExchange, GivesWhatOneRankGives) {
  for (const bool biases : {false, true}) {
    for (const auto& tokens : std::vector<std::vector<int64_t>>{{12, 12}, {9, 1}, {7, 12, 3, 20}, {1, 1, 1, 1, 1, 1}}) {
      const auto placement = place_experts(kExperts, {}, std::ssize(tokens));
      expect_same(make_case(tokens, at::kFloat, biases), placement, kF32);
      expect_same(make_case(tokens, at::kBFloat16, biases), placement, kBf16);
    }
  }
}

TEST(ExpertExchange, GivesWhatTheReferenceGives) {
  expect_same(make_case({5, 8, 2}, at::kFloat, true), place_experts(kExperts, {}, 3), kF32, MoeKernel::kReference);
}

TEST(ExpertExchange, TakesRanksWithoutTokens) {
  for (const auto& tokens : std::vector<std::vector<int64_t>>{{6, 0}, {0, 6}, {0, 5, 0, 0}}) {
    expect_same(make_case(tokens, at::kFloat, false), place_experts(kExperts, {}, std::ssize(tokens)), kF32);
  }
}

// Ranks 1 and 3 get no row; the gradients of their experts are zeros, not absent.
TEST(ExpertExchange, TakesExpertsAndRanksWithoutRows) {
  auto c = make_case({3, 4, 2, 6}, at::kFloat, true);
  const auto placement = place_experts(kExperts, {}, 4);  // 0 and 4, 1 and 5, 2, 3
  for (int64_t t = 0; t < c.index_TK.size(0); ++t) {
    c.index_TK[t][0] = 4;
    c.index_TK[t][1] = 2;
    c.index_TK[t][2] = 0;
  }
  expect_same(c, placement, kF32);
}

TEST(ExpertExchange, SendsEveryTokenToOneRank) {
  auto c = make_case({3, 4}, at::kFloat, false);
  c.index_TK = c.index_TK.remainder(3) * 2;  // experts 0, 2 and 4 of rank 0; also twice in a token
  expect_same(c, place_experts(kExperts, {}, 2), kF32);
}

TEST(ExpertExchange, FollowsAnyPlacement) {
  const std::vector<uint32_t> parents{0, 0, 1, 1, 0, 1};
  expect_same(make_case({4, 9}, at::kFloat, false), place_experts(kExperts, parents, 2), kF32);
  expect_same(make_case({4, 9}, at::kFloat, false), {2, {1, 1, 0, 1, 1, 1}}, kF32);
}

// (R-1)/R of the pairs leave if the routing is even; each is sent with its gate, and comes back.
TEST(ExpertExchange, SendsTheRowsOfOthersOnly) {
  auto c = make_case({4, 4}, at::kFloat, false);
  const auto placement = place_experts(kExperts, {}, 2);
  testing::run_ranks(
      2,
      [&](dist::World& world) {
        at::set_num_threads(1);
        const auto sent = [&] { return world.experts().bytes_sent(dist::Collective::kAllToAll); };
        const uint64_t before = sent();
        (void)of_rank(c, world, placement, MoeKernel::kFast);
        const auto index_TK = c.index_TK.narrow(0, 4 * world.rank(), 4);
        const auto other_TK = c.index_TK.narrow(0, 4 * (1 - world.rank()), 4);
        const auto away = static_cast<uint64_t>(index_TK.remainder(2).ne(world.rank()).sum().item<int64_t>());
        const auto here = static_cast<uint64_t>(other_TK.remainder(2).eq(world.rank()).sum().item<int64_t>());
        constexpr uint64_t kRow = kDim * 4, kGate = 4, kSq = 4, kCounts = kExperts / 2 * 8;
        EXPECT_EQ(sent() - before, kCounts + away * (2 * kRow + kGate) + here * (2 * kRow + kGate + kSq));
      },
      {.expert_parallel = 2, .timeout = std::chrono::seconds(60)});
}

}  // namespace
}  // namespace coppice::nn
