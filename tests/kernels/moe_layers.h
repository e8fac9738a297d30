#pragma once

// Random MoE layers, and what a kernel makes of them.

#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "coppice/kernels/moe.h"
#include "coppice/kernels/moe_detail.h"

namespace coppice::kernels::testing {

// T tokens, D model dimension, E experts, K choices per token, F expert width.
struct LayerSizes {
  int64_t tokens, dim, experts, top_k, width;
};

struct Layer {
  at::Tensor x_TD, w_gate_up_EGD, w_down_EDF, index_TK, gate_TK, grad_TD;

  std::vector<at::Tensor*> all() { return {&x_TD, &w_gate_up_EGD, &w_down_EDF, &index_TK, &gate_TK, &grad_TD}; }
};

/// K different experts per token, by a random order of them.
inline at::Tensor random_choice(int64_t tokens, int64_t experts, int64_t top_k) {
  return at::rand({tokens, experts}).argsort(int64_t{1}).narrow(1, 0, top_k).contiguous();
}

inline Layer make_layer(const LayerSizes& c, at::ScalarType dtype = at::kFloat) {
  at::manual_seed(static_cast<uint64_t>(c.tokens * 31 + c.experts));
  return {at::randn({c.tokens, c.dim}).to(dtype),
          (at::randn({c.experts, 2 * c.width, c.dim}) * 0.3).to(dtype),
          (at::randn({c.experts, c.dim, c.width}) * 0.3).to(dtype),
          random_choice(c.tokens, c.experts, c.top_k),
          at::rand({c.tokens, c.top_k}) + 0.1,
          at::randn({c.tokens, c.dim}).to(dtype)};
}

/// Output, then gradients of x, both weights and the gates.
inline std::vector<at::Tensor> run(const Layer& layer, MoeKernel kernel) {
  std::vector<at::Tensor> leaves;
  for (const auto& t : {layer.x_TD, layer.w_gate_up_EGD, layer.w_down_EDF, layer.gate_TK}) {
    leaves.push_back(t.detach().clone().set_requires_grad(true));
  }
  const auto y_TD = moe_experts(leaves[0], leaves[1], leaves[2], layer.index_TK, leaves[3], kernel);
  auto out = torch::autograd::grad({y_TD}, leaves, {layer.grad_TD});
  out.insert(out.begin(), y_TD.detach());
  return out;
}

/// The same from a variant's own passes.
inline std::vector<at::Tensor> run_of(const detail::MoeVariant& variant, const Layer& l) {
  const detail::MoeInputs in{l.x_TD, l.w_gate_up_EGD, l.w_down_EDF, l.index_TK, l.gate_TK};
  const auto out = variant.forward(in);
  const auto g = variant.backward(in, out, l.grad_TD);
  return {out.y_TD, g.x_TD, g.w_gate_up_EGD, g.w_down_EDF, g.gate_TK};
}

/// Each to `tolerance` of its largest number.
inline void expect_near(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& wanted, double tolerance) {
  const char* const names[] = {"y", "x", "gate_up", "down", "gate"};
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) {
    if (wanted[i].numel() == 0) continue;
    const auto scale = wanted[i].to(at::kDouble).abs().max().item<double>();
    const auto error = (found[i].to(at::kDouble) - wanted[i].to(at::kDouble)).abs().max().item<double>();
    EXPECT_LE(error, tolerance * scale + 1e-30) << names[i];
  }
}

inline Layer in_f64(const Layer& l) {
  return {l.x_TD.to(at::kDouble),    l.w_gate_up_EGD.to(at::kDouble), l.w_down_EDF.to(at::kDouble), l.index_TK,
          l.gate_TK.to(at::kDouble), l.grad_TD.to(at::kDouble)};
}

}  // namespace coppice::kernels::testing
