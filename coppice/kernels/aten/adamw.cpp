#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/bitwise_xor.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <map>
#include <vector>

#include "coppice/kernels/adamw_detail.h"

namespace coppice::kernels::aten {
namespace {

constexpr int64_t kPiece = 1 << 22, kBatch = 1 << 26;

at::Tensor elements(const at::Tensor& t, int64_t begin, int64_t size) { return t.view({-1}).narrow(0, begin, size); }

// Unsigned 32-bit numbers in int64.
at::Tensor low_32(const at::Tensor& x) { return at::bitwise_and(x, int64_t{0xffffffff}); }
at::Tensor mixed(const at::Tensor& h, int64_t shift, uint32_t factor) {
  // The low half of a product is correct even if its high half overflows.
  return low_32(at::bitwise_xor(h, at::bitwise_right_shift(h, shift)) * static_cast<int64_t>(factor));
}

// For elements [begin, end) in one step.
at::Tensor random_bits(int64_t begin, int64_t end, int64_t step, const at::TensorOptions& options) {
  const auto draw = static_cast<int64_t>(static_cast<uint32_t>(step) * detail::kStepFactor);
  auto h = low_32(at::arange(begin, end, options.dtype(at::kLong)));
  h = at::bitwise_xor(low_32(h * static_cast<int64_t>(detail::kElementFactor)), draw);
  h = mixed(mixed(h, 16, detail::kFirstMix), 13, detail::kSecondMix);
  return at::bitwise_xor(h, at::bitwise_right_shift(h, 16));
}

// Converts f32 to bf16, rounding up if the low half plus 16 random bits carries.
at::Tensor rounded(const at::Tensor& f32, const at::Tensor& bits16) {
  const auto sum = low_32(f32.view(at::kInt).to(at::kLong)) + bits16;
  return at::bitwise_right_shift(sum, 16).to(at::kShort).view(at::kBFloat16);
}

// Rounds to the bf16 moments of a part.
void store_moments(const AdamwPart& part, const at::Tensor& m, const at::Tensor& v) {
  const int64_t count = m.numel();
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t size = std::min(kPiece, count - begin);
    const auto bits =
        random_bits(part.first_element + begin, part.first_element + begin + size, part.step, m.options());
    const auto store = [&](const at::Tensor& to, const at::Tensor& from, const at::Tensor& bits16) {
      elements(to, begin, size).copy_(rounded(elements(from, begin, size), bits16));
    };
    store(part.exp_avg, m, at::bitwise_and(bits, int64_t{0xffff}));
    store(part.exp_avg_sq, v, at::bitwise_right_shift(bits, 16));
  }
}

// Parts that all decay, or all do not.
void step_batch(std::span<const AdamwPart> parts, double grad_scale, const AdamwSettings& s) {
  std::vector<at::Tensor> masters, grads, m, v, steps, values, new_values;
  std::map<int64_t, at::Tensor> step_on_device;
  for (const AdamwPart& part : parts) {
    masters.push_back(part.master);
    grads.push_back(part.grad.to(at::kFloat));  // no copy if it is f32
    m.push_back(part.exp_avg.to(at::kFloat));
    v.push_back(part.exp_avg_sq.to(at::kFloat));
    auto& step = step_on_device[part.step];
    if (!step.defined()) step = at::full({}, part.step, part.master.options());
    steps.push_back(step);
    if (!part.value.defined()) continue;
    values.push_back(part.value);
    new_values.push_back(part.master);
  }
  at::_fused_adamw_(masters, at::_foreach_mul(grads, grad_scale), m, v, {}, steps, s.lr, s.beta1, s.beta2,
                    parts.front().decays ? s.weight_decay : 0, s.epsilon, /*amsgrad=*/false, /*maximize=*/false);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].exp_avg.scalar_type() == at::kBFloat16) store_moments(parts[i], m[i], v[i]);
  }
  if (!values.empty()) at::_foreach_copy_(values, new_values);
}

AdamwPart cut(const AdamwPart& part, int64_t begin, int64_t size) {
  return {.master = elements(part.master, begin, size),
          .exp_avg = elements(part.exp_avg, begin, size),
          .exp_avg_sq = elements(part.exp_avg_sq, begin, size),
          .grad = elements(part.grad, begin, size),
          .value = part.value.defined() ? elements(part.value, begin, size) : at::Tensor(),
          .step = part.step,
          .decays = part.decays,
          .first_element = part.first_element + begin};
}

}  // namespace

void adamw_step(std::span<const AdamwPart> parts, double grad_scale, const AdamwSettings& settings) {
  const at::NoGradGuard no_grad;
  for (const bool decays : {true, false}) {
    std::vector<AdamwPart> batch;
    int64_t room = kBatch;
    const auto flush = [&] {
      if (!batch.empty()) step_batch(batch, grad_scale, settings);
      batch.clear();
      room = kBatch;
    };
    for (const AdamwPart& part : parts) {
      if (part.decays != decays) continue;
      for (int64_t begin = 0, size = 0; begin < part.master.numel(); begin += size) {
        size = std::min(room, part.master.numel() - begin);
        batch.push_back(cut(part, begin, size));
        room -= size;
        if (room == 0) flush();
      }
    }
    flush();
  }
}

}  // namespace coppice::kernels::aten
