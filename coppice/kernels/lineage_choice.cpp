#include "coppice/kernels/lineage_choice.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gather.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "coppice/base/check.h"
#include "coppice/base/rng.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels {
namespace {

constexpr int64_t kTokensPerTask = 256;
constexpr float kTie = 1e-5f;   // relative to a logit, because some products of equal rows differ in the last bits
constexpr int kHashShift = 11;  // leaves the 53 bits of a double

namespace on_cpu {

at::Tensor tokens_held(int64_t tokens, uint64_t first_token, uint64_t seed, double share) {
  const auto held_T = at::empty({tokens}, at::kBool);
  auto* const held = held_T.mutable_data_ptr<bool>();
  for (int64_t t = 0; t < tokens; ++t) {
    const uint64_t hash = splitmix64(seed ^ splitmix64(first_token + static_cast<uint64_t>(t)));
    held[t] = static_cast<double>(hash >> kHashShift) * 0x1p-53 < share;
  }
  return held_T;
}

/// The best child of a lineage, or one of the children that tie with it.
int64_t pick_child(std::span<const int64_t> siblings, const float* choice, const float* logit, const float* bias,
                   uint64_t hash) {
  const int64_t best = *std::ranges::max_element(siblings, [&](int64_t a, int64_t b) { return choice[a] < choice[b]; });
  const float margin = kTie * std::max(1.0f, std::abs(logit[best]));
  const auto ties = [&](int64_t e) {  // the best one also ties with itself if it is NaN, which the loss will show
    return e == best || (std::abs(logit[e] - logit[best]) <= margin && (bias == nullptr || bias[e] == bias[best]));
  };
  auto left = hash % static_cast<uint64_t>(std::ranges::count_if(siblings, ties));
  for (const int64_t e : siblings) {
    if (ties(e) && left-- == 0) return e;
  }
  COPPICE_CHECK(false, "no child ties with the best");
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

}  // namespace on_cpu

namespace on_device {

// Unsigned integers in tensors of int64.
int64_t bits(uint64_t value) { return static_cast<int64_t>(value); }
at::Tensor shifted_right(const at::Tensor& x, int count) {
  return x.__rshift__(count).bitwise_and(bits(~uint64_t{0} >> count));
}

/// splitmix64 of base/rng.h, of every element.
at::Tensor hashed(const at::Tensor& x) {
  auto z = x + bits(0x9e3779b97f4a7c15);
  z = z.bitwise_xor(shifted_right(z, 30)) * bits(0xbf58476d1ce4e5b9);
  z = z.bitwise_xor(shifted_right(z, 27)) * bits(0x94d049bb133111eb);
  return z.bitwise_xor(shifted_right(z, 31));
}

at::Tensor token_hashes(int64_t tokens, uint64_t first_token, uint64_t seed, at::Device device) {
  const auto number_T = at::arange(tokens, at::TensorOptions().dtype(at::kLong).device(device)) + bits(first_token);
  return hashed(hashed(number_T).bitwise_xor(bits(seed)));
}

/// hash % count, of unsigned hashes and counts below 2^31.
at::Tensor unsigned_remainder(const at::Tensor& hash, const at::Tensor& count) {
  return (shifted_right(hash, 1).remainder(count) * 2 + hash.bitwise_and(1)).remainder(count);
}

LineageChoice best_children(const at::Tensor& choice_TE, const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const at::Tensor& child_LR, uint64_t seed, uint64_t first_token) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const int64_t tokens = choice_TE.size(0), lineages = child_LR.size(0), most = child_LR.size(1);
  const auto is_child_LR = child_LR.ge(0);
  const auto index = child_LR.clamp_min(0).view({-1});
  const auto by_lineage = [&](const at::Tensor& value_TE) {
    return value_TE.index_select(1, index).view({tokens, lineages, most});
  };
  const auto choice_TLR = by_lineage(choice_TE).masked_fill(is_child_LR.logical_not(), kNever);
  const auto logit_TLR = by_lineage(logits_TE);
  const auto best_TL1 = at::argmax(choice_TLR, 2, /*keepdim=*/true);
  const auto best_logit_TL1 = logit_TLR.gather(2, best_TL1);
  auto ties_TLR = (logit_TLR - best_logit_TL1).abs().le(best_logit_TL1.abs().clamp_min(1) * static_cast<double>(kTie));
  if (bias_E.defined()) {
    const auto bias_TLR = bias_E.index_select(0, index).view({1, lineages, most}).expand({tokens, lineages, most});
    ties_TLR = ties_TLR.logical_and(bias_TLR.eq(bias_TLR.gather(2, best_TL1)));
  }
  // The best one also ties with itself if it is NaN, which the loss will show.
  ties_TLR = ties_TLR.logical_and(is_child_LR).scatter(2, best_TL1, true);
  const auto lineage_L = at::arange(lineages, child_LR.options());
  const auto hash_TL = hashed(token_hashes(tokens, first_token, seed, choice_TE.device()).unsqueeze(1) + lineage_L);
  const auto left_TL = unsigned_remainder(hash_TL, ties_TLR.sum(2));
  const auto rank_TLR = ties_TLR.cumsum(2);
  const auto picked_TL1 =
      at::argmax(rank_TLR.eq((left_TL + 1).unsqueeze(2)).logical_and(ties_TLR).to(at::kByte), 2, /*keepdim=*/true);
  return {choice_TLR.gather(2, picked_TL1).squeeze(2),
          child_LR.expand({tokens, lineages, most}).gather(2, picked_TL1).squeeze(2)};
}

}  // namespace on_device
}  // namespace

at::Tensor tokens_held(int64_t tokens, uint64_t first_token, uint64_t seed, double share, at::Device device) {
  if (device.is_cpu()) return on_cpu::tokens_held(tokens, first_token, seed, share);
  const auto hash_T = on_device::token_hashes(tokens, first_token, seed, device);
  return (on_device::shifted_right(hash_T, kHashShift).to(at::kDouble) * 0x1p-53).lt(share);
}

LineageChoice best_children(const at::Tensor& choice_TE, const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const at::Tensor& child_LR, uint64_t seed, uint64_t first_token) {
  COPPICE_CHECK(choice_TE.sizes() == logits_TE.sizes() && child_LR.dim() == 2);
  if (!choice_TE.is_cpu()) return on_device::best_children(choice_TE, logits_TE, bias_E, child_LR, seed, first_token);
  return on_cpu::best_children(choice_TE.contiguous(), logits_TE.contiguous(), bias_E, child_LR.contiguous(), seed,
                               first_token);
}

}  // namespace coppice::kernels
