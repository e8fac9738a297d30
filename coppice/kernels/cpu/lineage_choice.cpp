#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "coppice/base/check.h"
#include "coppice/base/rng.h"
#include "coppice/kernels/parallel.h"
#include "coppice/kernels/routing_detail.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kTokensPerTask = 256;

/// The best child of a lineage, or one of the children that tie with it.
int64_t pick_child(std::span<const int64_t> siblings, const float* choice, const float* logit, const float* bias,
                   uint64_t hash) {
  const int64_t best = *std::ranges::max_element(siblings, [&](int64_t a, int64_t b) { return choice[a] < choice[b]; });
  const float margin = detail::kTie * std::max(1.0f, std::abs(logit[best]));
  const auto ties = [&](int64_t e) {  // the best one also ties with itself if it is NaN, which the loss will show
    return e == best || (std::abs(logit[e] - logit[best]) <= margin && (bias == nullptr || bias[e] == bias[best]));
  };
  auto left = hash % static_cast<uint64_t>(std::ranges::count_if(siblings, ties));
  for (const int64_t e : siblings) {
    if (ties(e) && left-- == 0) return e;
  }
  COPPICE_CHECK(false, "no child ties with the best");
}

}  // namespace

at::Tensor tokens_held(const at::Tensor& scores_TE, uint64_t first_token, uint64_t seed, double share) {
  const int64_t tokens = scores_TE.size(0);
  const auto held_T = at::empty({tokens}, at::kBool);
  auto* const held = held_T.mutable_data_ptr<bool>();
  for (int64_t t = 0; t < tokens; ++t) {
    const uint64_t hash = splitmix64(seed ^ splitmix64(first_token + static_cast<uint64_t>(t)));
    held[t] = static_cast<double>(hash >> detail::kHashShift) * 0x1p-53 < share;
  }
  return held_T;
}

LineageChoice best_children(const at::Tensor& choice_TE, const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const at::Tensor& child_LR, uint64_t seed, uint64_t first_token) {
  const int64_t tokens = choice_TE.size(0), experts = choice_TE.size(1);
  const int64_t lineages = child_LR.size(0), most = child_LR.size(1);
  const LineageChoice out{at::empty({tokens, lineages}, choice_TE.options()), at::empty({tokens, lineages}, at::kLong)};
  const auto* const choice = choice_TE.const_data_ptr<float>();
  const auto* const logit = logits_TE.const_data_ptr<float>();
  const auto* const bias = bias_E.defined() ? bias_E.const_data_ptr<float>() : nullptr;
  const auto* const children = child_LR.const_data_ptr<int64_t>();
  auto* const score = out.score_TL.mutable_data_ptr<float>();
  auto* const child = out.child_TL.mutable_data_ptr<int64_t>();
  const auto siblings_of = [=](int64_t lineage) {
    const std::span<const int64_t> row(children + lineage * most, static_cast<size_t>(most));
    return row.first(static_cast<size_t>(std::ranges::find(row, -1) - row.begin()));
  };
  parallel_ranges(tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const uint64_t hash = splitmix64(seed ^ splitmix64(first_token + static_cast<uint64_t>(t)));
      const float* const row = choice + t * experts;
      for (int64_t l = 0; l < lineages; ++l) {
        const int64_t best =
            pick_child(siblings_of(l), row, logit + t * experts, bias, splitmix64(hash + static_cast<uint64_t>(l)));
        child[t * lineages + l] = best;
        score[t * lineages + l] = row[best];
      }
    }
  });
  return out;
}

}  // namespace coppice::kernels::cpu
