#pragma once

// Attention by its definition, with random inputs for it: windows, sinks, documents. B sequences, S positions, H query
// heads, J key heads, C head dimension.

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <string>
#include <vector>

#include "coppice/kernels/attention.h"

namespace coppice::kernels::testing {

struct AttentionCase {
  const char* name;
  int64_t positions, dim, window;
  bool with_sinks, with_documents;
};
constexpr int64_t kSequences = 2, kHeads = 6, kKeyHeads = 2;
constexpr double kScale = 0.17;

inline std::string attention_name(const ::testing::TestParamInfo<AttentionCase>& c) { return c.param.name; }
/// Sequences of less than one block of queries, and of more.
inline auto attention_cases() {
  return ::testing::Values(
      AttentionCase{"documents", 21, 8, 0, false, true}, AttentionCase{"sinks", 21, 8, 0, true, false},
      AttentionCase{"window_of_one", 21, 8, 1, false, false}, AttentionCase{"window", 21, 8, 5, false, false},
      AttentionCase{"window_and_sinks", 40, 16, 5, true, false}, AttentionCase{"window_of_all", 21, 8, 21, true, false},
      AttentionCase{"everything", 33, 8, 7, true, true}, AttentionCase{"documents_of_blocks", 520, 8, 0, false, true},
      AttentionCase{"everything_of_blocks", 520, 8, 100, true, true});
}

/// Where the documents start; some have one token, and each sequence has others.
inline at::Tensor document_starts(int64_t positions) {
  const auto longs = at::arange(positions, at::kLong);
  return at::stack({longs.floor_divide(5).mul(5), longs.floor_divide(19).mul(19)}).contiguous();
}

/// Query, key and value and, if the case has them, the sinks.
inline std::vector<at::Tensor> attention_inputs(const AttentionCase& c) {
  at::manual_seed(3);
  const auto of = [&](int64_t heads) { return at::randn({kSequences, c.positions, heads, c.dim}); };
  std::vector<at::Tensor> in{of(kHeads), of(kKeyHeads), of(kKeyHeads)};
  if (c.with_sinks) in.push_back(at::randn({kHeads}));
  return in;
}

inline Sight sight_of(const AttentionCase& c, const std::vector<at::Tensor>& in) {
  Sight sight{.window = c.window};
  if (c.with_sinks) sight.sink_H = in.at(3);
  if (c.with_documents) sight.documents = find_documents(document_starts(c.positions), in[0].device());
  return sight;
}

/// Scores of all pairs, those out of sight hidden, the sink as one more score that is dropped.
inline at::Tensor plain(const AttentionCase& c, const std::vector<at::Tensor>& in) {
  const auto heads = [](const at::Tensor& x) { return x.repeat_interleave(kHeads / x.size(2), 2).transpose(1, 2); };
  auto score = at::matmul(heads(in[0]), heads(in[1]).transpose(2, 3)) * kScale;
  const auto key = at::arange(c.positions, at::kLong), query = key.unsqueeze(1);
  auto hidden = (key > query).unsqueeze(0);
  if (c.window > 0) hidden = hidden.logical_or(key <= query - c.window);
  if (c.with_documents) hidden = hidden.logical_or(key < document_starts(c.positions).unsqueeze(2));
  score = score.masked_fill(hidden.unsqueeze(1), -std::numeric_limits<double>::infinity());
  if (c.with_sinks) {
    score = at::cat({score, in[3].view({1, -1, 1, 1}).expand({kSequences, -1, c.positions, 1})}, -1);
  }
  return at::matmul(at::softmax(score, -1).narrow(3, 0, c.positions), heads(in[2])).transpose(1, 2);
}

/// Output, then the gradients of the inputs, on the CPU; computed on `device` in `dtype`.
template <class F>
std::vector<at::Tensor> run_attention(const std::vector<at::Tensor>& in, at::ScalarType dtype, at::Device device,
                                      const F& attention) {
  std::vector<at::Tensor> leaves;
  for (const auto& t : in) leaves.push_back(t.to(dtype).to(device).detach().clone().set_requires_grad(true));
  const auto out = attention(leaves);
  at::manual_seed(9);
  auto results = torch::autograd::grad({out}, leaves, {at::randn(out.sizes()).to(dtype).to(device)});
  results.insert(results.begin(), out.detach());
  for (auto& t : results) {
    EXPECT_EQ(t.scalar_type(), dtype);
    EXPECT_EQ(t.device(), device);
    t = t.to(at::kCPU);
  }
  return results;
}

inline void expect_attention_near(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& wanted,
                                  double tolerance) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) {
    const auto scale = wanted[i].abs().max().item<double>();
    EXPECT_LE((found[i].to(at::kDouble) - wanted[i]).abs().max().item<double>(), tolerance * scale + 1e-6)
        << i;  // a window of 1 has no slope
  }
}

}  // namespace coppice::kernels::testing
