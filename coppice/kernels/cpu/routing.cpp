#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
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
