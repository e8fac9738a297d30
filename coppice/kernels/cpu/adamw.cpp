#include <bit>
#include <cmath>
#include <cstdint>

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
  int64_t begin, count;
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
void update(const Range<G, M>& r, const Constants& c) {
  float* __restrict master = r.master;
  M* __restrict exp_avg = r.exp_avg;
  M* __restrict exp_avg_sq = r.exp_avg_sq;
  const G* __restrict grad = r.grad;
  for (int64_t i = 0; i < r.count; ++i) {
    const float g = load(grad[i]) * c.grad_scale;
    const float before = load(exp_avg[i]);
    const float m = before + c.beta1_rest * (g - before);
    const float v = c.beta2 * load(exp_avg_sq[i]) + c.beta2_rest * g * g;
    const uint32_t bits = random_bits(static_cast<uint32_t>(r.begin + i), r.draw);
    store_moment(exp_avg[i], m, bits & 0xffffu);
    store_moment(exp_avg_sq[i], v, bits >> 16);
    master[i] = master[i] * c.keep - c.step_size * m / (std::sqrt(v) * c.root_scale + c.epsilon);
  }
}

template <class T>
void round_to(const float* __restrict from, T* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store(to[i], from[i]);
}

}  // namespace

void adamw_step(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                const at::Tensor& grad, const at::Tensor& value, int64_t step, double grad_scale,
                const AdamwSettings& s) {
  const auto power = static_cast<double>(step);
  const Constants constants{
      .grad_scale = static_cast<float>(grad_scale),
      .beta1_rest = static_cast<float>(1 - s.beta1),
      .beta2 = static_cast<float>(s.beta2),
      .beta2_rest = static_cast<float>(1 - s.beta2),
      .keep = static_cast<float>(1 - s.lr * s.weight_decay),
      .step_size = static_cast<float>(s.lr / (1 - std::pow(s.beta1, power))),
      .root_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(s.beta2, power))),
      .epsilon = static_cast<float>(s.epsilon),
  };
  auto* const p = master.data_ptr<float>();
  parallel_ranges(master.numel(), kGrain, [&](int64_t begin, int64_t end) {
    with_scalar(grad, [&]<class G>(G) {
      with_scalar(exp_avg, [&]<class M>(M) {
        update<G, M>(
            {p + begin, exp_avg.data_ptr<M>() + begin, exp_avg_sq.data_ptr<M>() + begin,
             grad.const_data_ptr<G>() + begin, begin, end - begin, static_cast<uint32_t>(step) * detail::kStepFactor},
            constants);
      });
    });
    if (!value.defined()) return;
    with_scalar(value, [&]<class T>(T) { round_to(p + begin, value.data_ptr<T>() + begin, end - begin); });
  });
}

}  // namespace coppice::kernels::cpu
