#include "coppice/kernels/attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/triu.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <vector>

#include "tests/guarded/devices.h"

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

std::vector<at::Tensor> run(const Inputs& in, const at::Tensor& start_BS = {}) {
  const Sight sight{.documents = find_documents(start_BS, in.query_BSHC.device())};
  return run(in, [&](const auto& q, const auto& k, const auto& v) { return causal_attention(q, k, v, kScale, sight); });
}

/// Documents of lengths that no block of a kernel has, other ones in each sequence; some of one token.
at::Tensor documents(const Case& c) {
  constexpr int64_t kLengths[] = {5, 1, 13, 40, 1, 2, 31, 70};
  const auto start_BS = at::empty({c.sequences, c.positions}, at::kLong);
  auto* const start = start_BS.mutable_data_ptr<int64_t>();
  size_t next = 0;
  for (int64_t b = 0; b < c.sequences; ++b) {
    for (int64_t begin = 0, end; begin < c.positions; begin = end) {
      end = std::min(c.positions, begin + kLengths[next++ % std::size(kLengths)]);
      std::fill(start + b * c.positions + begin, start + b * c.positions + end, begin);
    }
  }
  return start_BS;
}

/// `plain` of every document by itself.
at::Tensor plain_by_document(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                             const at::Tensor& start_BS) {
  std::vector<at::Tensor> sequences;
  for (int64_t b = 0; b < query.size(0); ++b) {
    const int64_t* const start = start_BS.const_data_ptr<int64_t>() + b * query.size(1);
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0, end; begin < query.size(1); begin = end) {
      for (end = begin + 1; end < query.size(1) && start[end] == begin; ++end) {
      }
      const auto part = [&](const at::Tensor& x) { return x.narrow(0, b, 1).narrow(1, begin, end - begin); };
      parts.push_back(plain(part(query), part(key), part(value)));
    }
    sequences.push_back(at::cat(parts, 1));
  }
  return at::cat(sequences, 0);
}

class CausalAttention : public ::testing::TestWithParam<Case> {};
// Those whose positions and dimension are multiples of 32 run on kernels of our own, where the processor has AVX-512;
// heads of 16 or 32 on others of our own where it has not.
INSTANTIATE_TEST_SUITE_P(Sizes, CausalAttention,
                         ::testing::Values(Case{2, 64, 2, 2, 32}, Case{1, 96, 4, 2, 64}, Case{3, 32, 6, 1, 32},
                                           Case{1, 160, 1, 1, 96}, Case{2, 7, 2, 1, 8}, Case{1, 40, 2, 2, 32},
                                           Case{2, 128, 4, 4, 16}, Case{3, 37, 4, 2, 16}, Case{1, 3, 3, 1, 16}));

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

TEST_P(CausalAttention, GivesEachDocumentWhatItGivesItAlone) {
  const auto start_BS = documents(GetParam());
  for (const auto& [dtype, tolerance] : {std::pair(at::kFloat, 5e-6), std::pair(at::kBFloat16, 2e-2)}) {
    const auto in = Inputs::random(GetParam(), dtype);
    const auto found = run(in, start_BS);
    const auto wanted = run(
        in.in_f64(), [&](const auto& q, const auto& k, const auto& v) { return plain_by_document(q, k, v, start_BS); });
    for (size_t i = 0; i < wanted.size(); ++i) {
      const double scale = wanted[i].abs().max().item<double>();
      EXPECT_LE((found[i].to(at::kDouble) - wanted[i]).abs().max().item<double>(), tolerance * scale)
          << dtype << " result " << i;
    }
  }
}

TEST_P(CausalAttention, OfOneDocumentIsTheOneWithoutDocuments) {
  const auto in = Inputs::random(GetParam(), at::kFloat);
  const auto found = run(in, at::zeros({GetParam().sequences, GetParam().positions}, at::kLong)), wanted = run(in);
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double scale = wanted[i].abs().max().item<double>();
    EXPECT_LE((found[i] - wanted[i]).abs().max().item<double>(), 5e-6 * scale) << i;
  }
}

// On another device libtorch may take another of its own implementations.
TEST_P(CausalAttention, OnAnotherDeviceIsTheSameToRounding) {
  for (const auto& [dtype, tolerance] : {std::pair(at::kFloat, 5e-6), std::pair(at::kBFloat16, 3e-2)}) {
    const auto in = Inputs::random(GetParam(), dtype);
    const auto there = [](const at::Tensor& x) { return x.to(guarded::kGuarded); };
    for (const auto& start_BS : {at::Tensor(), documents(GetParam())}) {
      const auto found =
          run({there(in.query_BSHC), there(in.key_BSJC), there(in.value_BSJC), there(in.grad_BSHC)}, start_BS);
      const auto wanted = run(in.in_f64(), start_BS);
      for (size_t i = 0; i < wanted.size(); ++i) {
        EXPECT_EQ(found[i].device(), guarded::kGuarded);
        const double scale = wanted[i].abs().max().item<double>();
        EXPECT_LE((found[i].to(at::kCPU).to(at::kDouble) - wanted[i]).abs().max().item<double>(), tolerance * scale)
            << dtype << " result " << i;
      }
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
