#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "coppice/kernels/adamw_detail.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;

struct Constants {
  float grad_scale, beta1_rest, beta2, beta2_rest, keep, step_size, root_scale, epsilon;
};

template <class G, class M>
struct Range {
  float* __restrict master;
  M* __restrict exp_avg;
  M* __restrict exp_avg_sq;
  const G* __restrict grad;
  int64_t first_element, count;
  uint32_t draw;  ///< key of the step's stochastic rounding
};

/// 32 random bits for an element and a step.
[[gnu::always_inline]] inline uint32_t random_bits(uint32_t element, uint32_t draw) {
  uint32_t h = element * detail::kElementFactor ^ draw;
  h = (h ^ (h >> 16)) * detail::kFirstMix;
  h = (h ^ (h >> 13)) * detail::kSecondMix;
  return h ^ (h >> 16);
}

[[gnu::always_inline]] inline void store_moment(float& to, float value, uint32_t) { to = value; }
/// Rounds up or down with probabilities that keep the mean. Otherwise changes below half a step of bf16 would be lost,
/// and with beta2 = 0.999 all changes are that small.
[[gnu::always_inline]] inline void store_moment(at::BFloat16& to, float value, uint32_t bits16) {
  to.x = static_cast<uint16_t>((std::bit_cast<uint32_t>(value) + bits16) >> 16);
}

template <class G, class M>
COPPICE_FOR_AVX512_TOO void update(const Range<G, M>& r, const Constants& c) {
  float* __restrict master = r.master;
  M* __restrict exp_avg = r.exp_avg;
  M* __restrict exp_avg_sq = r.exp_avg_sq;
  const G* __restrict grad = r.grad;
  for (int64_t i = 0; i < r.count; ++i) {
    const float g = load(grad[i]) * c.grad_scale;
    const float before = load(exp_avg[i]);
    const float m = before + c.beta1_rest * (g - before);
    const float v = c.beta2 * load(exp_avg_sq[i]) + c.beta2_rest * g * g;
    const uint32_t bits = random_bits(static_cast<uint32_t>(r.first_element + i), r.draw);
    store_moment(exp_avg[i], m, bits & 0xffffu);
    store_moment(exp_avg_sq[i], v, bits >> 16);
    master[i] = master[i] * c.keep - c.step_size * m / (std::sqrt(v) * c.root_scale + c.epsilon);
  }
}

template <class T>
COPPICE_FOR_AVX512_TOO void round_to(const float* __restrict from, T* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store(to[i], from[i]);
}

Constants constants_of(const AdamwPart& part, double grad_scale, const AdamwSettings& s) {
  const auto power = static_cast<double>(part.step);
  return {
      .grad_scale = static_cast<float>(grad_scale),
      .beta1_rest = static_cast<float>(1 - s.beta1),
      .beta2 = static_cast<float>(s.beta2),
      .beta2_rest = static_cast<float>(1 - s.beta2),
      .keep = static_cast<float>(part.decays ? 1 - s.lr * s.weight_decay : 1),
      .step_size = static_cast<float>(s.lr / (1 - std::pow(s.beta1, power))),
      .root_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(s.beta2, power))),
      .epsilon = static_cast<float>(s.epsilon),
  };
}

void update_part(const AdamwPart& part, int64_t begin, int64_t end, const Constants& constants) {
  auto* const master = part.master.data_ptr<float>() + begin;
  with_scalar(part.grad, [&]<class G>(G) {
    with_scalar(part.exp_avg, [&]<class M>(M) {
      update<G, M>({master, part.exp_avg.data_ptr<M>() + begin, part.exp_avg_sq.data_ptr<M>() + begin,
                    part.grad.const_data_ptr<G>() + begin, part.first_element + begin, end - begin,
                    static_cast<uint32_t>(part.step) * detail::kStepFactor},
                   constants);
    });
  });
  if (!part.value.defined()) return;
  with_scalar(part.value, [&]<class T>(T) { round_to(master, part.value.data_ptr<T>() + begin, end - begin); });
}

}  // namespace

void adamw_step(std::span<const AdamwPart> parts, double grad_scale, const AdamwSettings& settings) {
  std::vector<int64_t> ends;
  ends.reserve(parts.size());
  std::map<std::pair<int64_t, bool>, Constants> constants;
  for (const AdamwPart& part : parts) {
    ends.push_back((ends.empty() ? 0 : ends.back()) + part.master.numel());
    const auto [found, is_new] = constants.try_emplace({part.step, part.decays});
    if (is_new) found->second = constants_of(part, grad_scale, settings);
  }
  // One numbering of all elements, so that small parts share a task.
  parallel_ranges(ends.back(), kGrain, [&](int64_t begin, int64_t end) {
    for (auto at = std::ranges::upper_bound(ends, begin) - ends.begin(); begin < end; ++at) {
      const AdamwPart& part = parts[static_cast<size_t>(at)];
      const int64_t part_end = ends[static_cast<size_t>(at)], part_begin = part_end - part.master.numel();
      const int64_t until = std::min(end, part_end);
      update_part(part, begin - part_begin, until - part_begin, constants.at({part.step, part.decays}));
      begin = until;
    }
  });
}

}  // namespace coppice::kernels::cpu
