#pragma once

// Experts with biases and other activations than SwiGLU, with random inputs for each form.

#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "coppice/kernels/moe.h"

namespace coppice::kernels::testing {

namespace form_sizes {
inline constexpr int64_t kTokens = 90, kDim = 32, kExperts = 5, kTopK = 2,
                         kWidth = 64;  // sizes that AVX-512 could take
}  // namespace form_sizes

struct FormCase {
  const char* name;
  ExpertActivation activation;
  bool has_gate_up_bias, has_down_bias;
};

inline auto all_forms() {
  return ::testing::Values(FormCase{"plain", ExpertActivation::kSwiglu, false, false},
                           FormCase{"biases", ExpertActivation::kSwiglu, true, true},
                           FormCase{"bias_of_down", ExpertActivation::kSwiglu, false, true},
                           FormCase{"clamped", ExpertActivation::kClampedSwiglu, false, false},
                           FormCase{"clamped_with_biases", ExpertActivation::kClampedSwiglu, true, true});
}
inline std::string form_name(const ::testing::TestParamInfo<FormCase>& form) { return form.param.name; }

struct FormInputs {
  std::vector<at::Tensor> leaves;  // x, gate and up, down, gates, then the biases that the form has
  at::Tensor index_TK, grad_TD;

  FormInputs to(at::ScalarType dtype, at::ScalarType gates) const {
    FormInputs out = *this;
    for (size_t i = 0; i < leaves.size(); ++i) out.leaves[i] = leaves[i].to(i == 3 ? gates : dtype);
    out.grad_TD = grad_TD.to(dtype);
    return out;
  }
};

// Pre-activations of some 5, so that many lie past the clamp at 7.
inline FormInputs make_inputs(const FormCase& c) {
  using namespace form_sizes;
  at::manual_seed(4);
  FormInputs in{
      {at::randn({kTokens, kDim}), at::randn({kExperts, 2 * kWidth, kDim}), at::randn({kExperts, kDim, kWidth}) * 0.3,
       at::rand({kTokens, kTopK}) + 0.1},
      at::rand({kTokens, kExperts - 1}).argsort(int64_t{1}).narrow(1, 0, kTopK).contiguous(),  // the last: none
      at::randn({kTokens, kDim})};
  if (c.has_gate_up_bias) in.leaves.push_back(at::randn({kExperts, 2 * kWidth}));
  if (c.has_down_bias) in.leaves.push_back(at::randn({kExperts, kDim}));
  return in;
}

inline ExpertForm form_of(const FormCase& c, const std::vector<at::Tensor>& leaves) {
  ExpertForm form{.activation = c.activation};
  size_t next = 4;
  if (c.has_gate_up_bias) form.gate_up_bias_EG = leaves[next++];
  if (c.has_down_bias) form.down_bias_ED = leaves[next++];
  return form;
}

/// Each to `tolerance` of its largest number, which is not 0.
inline void expect_forms_near(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& wanted,
                              double tolerance) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) {
    const auto scale = wanted[i].abs().max().item<double>();
    EXPECT_LE((found[i].to(at::kDouble) - wanted[i]).abs().max().item<double>(), tolerance * scale) << i;
    EXPECT_GT(scale, 0) << i;
  }
}

}  // namespace coppice::kernels::testing
