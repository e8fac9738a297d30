#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/bitwise_xor.h>
#include <ATen/ops/full.h>

#include <algorithm>

#include "coppice/kernels/adamw_detail.h"

namespace coppice::kernels::aten {
namespace {

constexpr int64_t kPiece = 1 << 22;

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

void store_moments(const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq, const at::Tensor& m, const at::Tensor& v,
                   int64_t step) {
  const int64_t count = exp_avg.numel();
  const auto part = [](const at::Tensor& t, int64_t begin, int64_t size) {
    return t.view({-1}).narrow(0, begin, size);
  };
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t size = std::min(kPiece, count - begin);
    const auto bits = random_bits(begin, begin + size, step, exp_avg.options());
    part(exp_avg, begin, size).copy_(rounded(part(m, begin, size), at::bitwise_and(bits, int64_t{0xffff})));
    part(exp_avg_sq, begin, size).copy_(rounded(part(v, begin, size), at::bitwise_right_shift(bits, 16)));
  }
}

}  // namespace

void adamw_step(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                const at::Tensor& grad, const at::Tensor& value, int64_t step, double grad_scale,
                const AdamwSettings& s) {
  const at::NoGradGuard no_grad;
  const auto scaled = grad.to(at::kFloat) * grad_scale;
  const auto m = exp_avg.to(at::kFloat), v = exp_avg_sq.to(at::kFloat);  // no copy if they are f32
  at::_fused_adamw_({master}, {scaled}, {m}, {v}, {}, {at::full({}, step, master.options())}, s.lr, s.beta1, s.beta2,
                    s.weight_decay, s.epsilon, /*amsgrad=*/false, /*maximize=*/false);
  if (exp_avg.scalar_type() == at::kBFloat16) store_moments(exp_avg, exp_avg_sq, m, v, step);
  if (value.defined()) at::Tensor(value).copy_(master);
}

}  // namespace coppice::kernels::aten
