#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/kernels/parallel.h"
#include "coppice/kernels/routing_detail.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kTokensPerTask = 256;
constexpr float kNever = -std::numeric_limits<float>::infinity();

/// The indices of the `k` largest of `n` scores in falling order; equal scores by rising index.
void top_k_of(const float* score, int64_t n, int64_t k, int64_t* index) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    int64_t at = found < k ? found++ : k;
    while (at > 0 && score[i] > score[index[at - 1]]) {
      if (at < k) index[at] = index[at - 1];
      --at;
    }
    if (at < k) index[at] = i;
  }
}

/// Excludes what is outside of the best groups.
void keep_best_groups(float* score, int64_t candidates, const TopK& choice, std::vector<float>& group_score,
                      std::vector<int64_t>& best) {
  const int64_t size = candidates / choice.num_groups;
  const bool best_two = choice.best_two && size > 1;
  int64_t top_two[2];
  for (int64_t g = 0; g < choice.num_groups; ++g) {
    const float* const group = score + g * size;
    top_k_of(group, size, std::min<int64_t>(2, size), top_two);
    group_score[g] = best_two ? group[top_two[0]] + group[top_two[1]] : group[top_two[0]];
  }
  top_k_of(group_score.data(), choice.num_groups, choice.top_groups, best.data());
  for (int64_t g = 0; g < choice.num_groups; ++g) {
    const bool kept = std::find(best.begin(), best.begin() + choice.top_groups, g) != best.begin() + choice.top_groups;
    if (!kept) std::fill(score + g * size, score + (g + 1) * size, kNever);
  }
}

/// What renormalised gates are divided by.
float divisor(const float* share, int64_t count, const GateForm& form) {
  return std::accumulate(share, share + count, 0.0f) + static_cast<float>(form.epsilon);
}

}  // namespace

at::Tensor choose_top_k(const at::Tensor& score_TN, const TopK& choice) {
  const int64_t tokens = score_TN.size(0), candidates = score_TN.size(1), top_k = choice.top_k;
  const auto index_TK = at::empty({tokens, top_k}, score_TN.options().dtype(at::kLong));
  const auto* const score = score_TN.const_data_ptr<float>();
  auto* const index = index_TK.mutable_data_ptr<int64_t>();
  parallel_ranges(tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> row(candidates), group_score(choice.num_groups);
    std::vector<int64_t> best(choice.top_groups);
    for (int64_t t = begin; t < end; ++t) {
      std::copy_n(score + t * candidates, candidates, row.data());
      if (choice.num_groups > 1) keep_best_groups(row.data(), candidates, choice, group_score, best);
      top_k_of(row.data(), candidates, top_k, index + t * top_k);
    }
  });
  return index_TK;
}

detail::GatesForward gates_forward(const at::Tensor& value_TE, const at::Tensor& index_TK, const GateForm& form) {
  const int64_t tokens = index_TK.size(0), top_k = index_TK.size(1), experts = value_TE.size(1);
  const detail::GatesForward out{at::empty(index_TK.sizes(), value_TE.options()),
                                 at::empty(index_TK.sizes(), value_TE.options())};
  const auto* const values = value_TE.const_data_ptr<float>();
  const auto* const indices = index_TK.const_data_ptr<int64_t>();
  auto *const gates = out.gate_TK.mutable_data_ptr<float>(), *const shares = out.share_TK.mutable_data_ptr<float>();
  parallel_ranges(tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto* const index = indices + t * top_k;
      float *const gate = gates + t * top_k, *const share = shares + t * top_k;
      for (int64_t k = 0; k < top_k; ++k) {
        COPPICE_CHECK(index[k] >= 0 && index[k] < experts, "expert ", index[k]);
        share[k] = values[t * experts + index[k]];
      }
      if (form.softmax) {
        const float most = *std::max_element(share, share + top_k);
        for (int64_t k = 0; k < top_k; ++k) share[k] = std::exp(share[k] - most);
        const float sum = std::accumulate(share, share + top_k, 0.0f);
        for (int64_t k = 0; k < top_k; ++k) share[k] /= sum;
      }
      const float sum = form.renormalise ? divisor(share, top_k, form) : 1.0f;
      for (int64_t k = 0; k < top_k; ++k) gate[k] = share[k] / sum * static_cast<float>(form.scaling);
    }
  });
  return out;
}

// With s the shares, S = epsilon + their sum and c the scaling: gate_k = c s_k / S, so the gradient of s_k is
// (c grad_k - sum over j of grad_j gate_j) / S. The gradient of the softmax's inputs is s_k (d_k - sum over j of d_j s_j).
at::Tensor gates_backward(const detail::GatesForward& forward, const at::Tensor& index_TK, const at::Tensor& grad_TK,
                          int64_t num_experts, const GateForm& form) {
  const int64_t tokens = index_TK.size(0), top_k = index_TK.size(1);
  const auto out_TE = at::zeros({tokens, num_experts}, grad_TK.options());
  const auto* const indices = index_TK.const_data_ptr<int64_t>();
  const auto *const gates = forward.gate_TK.const_data_ptr<float>(),
                    *const shares = forward.share_TK.const_data_ptr<float>(),
                    *const grads = grad_TK.const_data_ptr<float>();
  auto* const out = out_TE.mutable_data_ptr<float>();
  parallel_ranges(tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> d(top_k);
    for (int64_t t = begin; t < end; ++t) {
      const float *const gate = gates + t * top_k, *const share = shares + t * top_k, *const grad = grads + t * top_k;
      const float sum = form.renormalise ? divisor(share, top_k, form) : 1.0f;
      const float pull = form.renormalise ? std::inner_product(grad, grad + top_k, gate, 0.0f) : 0.0f;
      for (int64_t k = 0; k < top_k; ++k) d[k] = (static_cast<float>(form.scaling) * grad[k] - pull) / sum;
      if (form.softmax) {
        const float mean = std::inner_product(d.begin(), d.end(), share, 0.0f);
        for (int64_t k = 0; k < top_k; ++k) d[k] = share[k] * (d[k] - mean);
      }
      for (int64_t k = 0; k < top_k; ++k) out[t * num_experts + indices[t * top_k + k]] += d[k];
    }
  });
  return out_TE;
}

at::Tensor expert_counts(const at::Tensor& index_TK, int64_t num_experts) {
  const auto counts = at::zeros({num_experts}, index_TK.options());
  auto* const count = counts.mutable_data_ptr<int64_t>();
  const auto* const expert = index_TK.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index_TK.numel(); ++i) {
    COPPICE_CHECK(expert[i] >= 0 && expert[i] < num_experts, "expert ", expert[i]);
    ++count[expert[i]];
  }
  return counts;
}

at::Tensor gate_mass(const at::Tensor& index_TK, const at::Tensor& gate_TK, int64_t num_experts, double divisor) {
  const auto mass_E = at::zeros({num_experts}, gate_TK.options().dtype(at::kDouble));
  const auto* const gate = gate_TK.const_data_ptr<float>();
  const auto* const expert = index_TK.const_data_ptr<int64_t>();
  auto* const mass = mass_E.mutable_data_ptr<double>();
  for (int64_t pair = 0; pair < gate_TK.numel(); ++pair) {
    COPPICE_CHECK(expert[pair] >= 0 && expert[pair] < num_experts, "expert ", expert[pair]);
    mass[expert[pair]] += gate[pair] / divisor;
  }
  return mass_E;
}

}  // namespace coppice::kernels::cpu
