// libtorch's FlashAttention without a GPU: the guarded device gets operators of the same names that hold their arguments
// to what those of a GPU demand (mha_varlen_fwd and mha_varlen_bwd of libtorch's flash_api.cpp) and compute the same
// from the same things: the backward pass from the output and the log of the sums that it is given.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>

#include "coppice/kernels/attention_detail.h"
#include "coppice/kernels/device_detail.h"
#include "tests/guarded/devices.h"
#include "tests/guarded/guarded_device.h"
#include "tests/kernels/attention_forms.h"

namespace coppice::kernels {
namespace {

using guarded::as_cpu;
using guarded::kCpu;
using guarded::kGuarded;
using testing::attention_inputs;
using testing::AttentionCase;
using testing::expect_attention_near;
using testing::kHeads;
using testing::kScale;
using testing::run_attention;
using testing::sight_of;

int calls = 0;

/// The arguments that both passes have, checked, and the documents one by one in f64 on the CPU. T tokens, H query
/// heads, J key heads, L tokens of a document.
struct Called {
  const at::Tensor &query, &key, &value;
  std::vector<int64_t> first;
  double scale;
  int64_t left;

  Called(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cum_q,
         const at::Tensor& cum_k, const c10::SymInt& max_q, const c10::SymInt& max_k, double dropout_p, bool is_causal,
         std::optional<double> scale_, std::optional<c10::SymInt> left_, std::optional<c10::SymInt> right)
      : query(q), key(k), value(v), scale(scale_.value()), left(left_.value().expect_int()) {
    ++calls;
    for (const auto* t : {&q, &k, &v}) {
      TORCH_CHECK(t->device() == kGuarded && t->scalar_type() == at::kBFloat16 && t->dim() == 3 && t->stride(2) == 1);
    }
    for (const auto* t : {&cum_q, &cum_k}) {
      TORCH_CHECK(t->device() == kGuarded && t->scalar_type() == at::kInt && t->dim() == 1 && t->is_contiguous());
    }
    TORCH_CHECK(k.sizes() == v.sizes() && q.size(0) == k.size(0) && q.size(2) == k.size(2));
    TORCH_CHECK(q.size(1) % k.size(1) == 0 && q.size(2) % 8 == 0 && q.size(2) <= 256);
    TORCH_CHECK(dropout_p == 0 && is_causal && right.value().expect_int() == 0);
    const auto starts = as_cpu(cum_q).to(at::kLong);
    TORCH_CHECK(starts.equal(as_cpu(cum_k).to(at::kLong)) && starts.numel() > 1);
    first.assign(starts.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>() + starts.numel());
    TORCH_CHECK(first.front() == 0 && first.back() == q.size(0));
    int64_t longest = 0;
    for (size_t i = 1; i < first.size(); ++i) longest = std::max(longest, first[i] - first[i - 1]);
    TORCH_CHECK(max_q.expect_int() == longest && max_k.expect_int() == longest, longest);
  }

  at::Tensor part(const at::Tensor& x, size_t document) const {
    return as_cpu(x).narrow(0, first[document], first[document + 1] - first[document]).to(at::kDouble).transpose(0, 1);
  }
  /// [H, L, C] of keys and values.
  at::Tensor repeated(const at::Tensor& x, size_t document) const {
    return part(x, document).repeat_interleave(query.size(1) / key.size(1), 0);
  }
  /// [H, L, L].
  at::Tensor scores(size_t document) const {
    const auto score = at::matmul(part(query, document), repeated(key, document).transpose(1, 2)) * scale;
    const auto at_key = at::arange(score.size(2), at::kLong), at_query = at_key.unsqueeze(1);
    auto hidden = at_key > at_query;
    if (left >= 0) hidden = hidden.logical_or(at_key < at_query - left);
    return score.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  }
  /// Puts [H, L, C]; the heads of a group are added up if `to` has fewer.
  void put(const at::Tensor& x_HLC, size_t document, const at::Tensor& to) const {
    const auto summed = x_HLC.unflatten(0, {to.size(1), -1}).sum(1).transpose(0, 1);
    as_cpu(to).narrow(0, first[document], summed.size(0)).copy_(summed);
  }
};

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Forward flash_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const std::optional<at::Tensor>& cum_q, const std::optional<at::Tensor>& cum_k, c10::SymInt max_q,
                      c10::SymInt max_k, double dropout_p, bool is_causal, bool return_debug_mask,
                      std::optional<double> scale, std::optional<c10::SymInt> left, std::optional<c10::SymInt> right,
                      const std::optional<at::Tensor>& seqused_k, const std::optional<at::Tensor>& alibi_slopes) {
  TORCH_CHECK(!return_debug_mask && !seqused_k && !alibi_slopes);
  const Called call(q, k, v, cum_q.value(), cum_k.value(), max_q, max_k, dropout_p, is_causal, scale, left, right);
  const auto out = at::empty_like(q), log_sum = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  for (size_t d = 0; d + 1 < call.first.size(); ++d) {
    const auto score = call.scores(d), sum = at::logsumexp(score, 2);
    as_cpu(log_sum).narrow(1, call.first[d], sum.size(1)).copy_(sum);
    call.put(at::matmul((score - sum.unsqueeze(2)).exp(), call.repeated(v, d)), d, out);
  }
  const auto state = at::empty({2}, q.options().dtype(at::kUInt64));
  return {out, log_sum, state, state, state};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
    const at::Tensor& log_sum, const at::Tensor& cum_q, const at::Tensor& cum_k, c10::SymInt max_q, c10::SymInt max_k,
    double dropout_p, bool is_causal, const at::Tensor& rng_state, const at::Tensor& unused,
    std::optional<double> scale, std::optional<c10::SymInt> left, std::optional<c10::SymInt> right) {
  const Called call(q, k, v, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, scale, left, right);
  for (const auto* t : {&grad, &out}) {
    TORCH_CHECK(t->device() == kGuarded && t->sizes() == q.sizes() && t->scalar_type() == q.scalar_type());
    TORCH_CHECK(t->is_contiguous());
  }
  TORCH_CHECK(log_sum.scalar_type() == at::kFloat && log_sum.is_contiguous());
  TORCH_CHECK(log_sum.sizes() == at::IntArrayRef({q.size(1), q.size(0)}));
  TORCH_CHECK(rng_state.device() == kGuarded && unused.device() == kGuarded);
  const auto grad_q = at::empty_like(q), grad_k = at::empty_like(k), grad_v = at::empty_like(v);
  for (size_t d = 0; d + 1 < call.first.size(); ++d) {
    const auto sum = as_cpu(log_sum).narrow(1, call.first[d], call.first[d + 1] - call.first[d]).to(at::kDouble);
    const auto weight = (call.scores(d) - sum.unsqueeze(2)).exp();
    const auto grad_d = call.part(grad, d), inner = (grad_d * call.part(out, d)).sum(2, true);
    const auto grad_score = weight * (at::matmul(grad_d, call.repeated(v, d).transpose(1, 2)) - inner) * call.scale;
    call.put(at::matmul(grad_score, call.repeated(k, d)), d, grad_q);
    call.put(at::matmul(grad_score.transpose(1, 2), call.part(q, d)), d, grad_k);
    call.put(at::matmul(weight.transpose(1, 2), grad_d), d, grad_v);
  }
  return {grad_q, grad_k, grad_v};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_flash_attention_forward", &flash_forward);
  m.impl("_flash_attention_backward", &flash_backward);
}

/// While it lives, the guarded device has FlashAttention.
struct HasFlash {
  HasFlash() {
    detail::flash_everywhere = true;
    calls = 0;
  }
  ~HasFlash() { detail::flash_everywhere = false; }
};

class FlashAttention : public ::testing::TestWithParam<AttentionCase> {
  HasFlash has_flash_;
};
INSTANTIATE_TEST_SUITE_P(Cases, FlashAttention, testing::attention_cases(), testing::attention_name);

TEST_P(FlashAttention, IsCalledAsItWantsAndGivesWhatTheDefinitionGives) {
  const auto& c = GetParam();
  auto in = attention_inputs(c);
  for (auto& t : in) t = t.to(at::kBFloat16);
  const auto wanted = run_attention(in, at::kDouble, kCpu, [&](const auto& x) { return testing::plain(c, x); });
  const auto found = run_attention(in, at::kBFloat16, kGuarded, [&](const auto& x) {
    return causal_attention(x[0], x[1], x[2], kScale, sight_of(c, x));
  });
  EXPECT_EQ(calls, 2) << "one forward, one backward";
  expect_attention_near(found, wanted, 3e-2);
}

TEST(FlashAttentionOf, OtherTensorsIsNotCalled) {
  const HasFlash has_flash;
  const auto run = [&](const AttentionCase& c, at::ScalarType dtype) {
    calls = 0;
    auto in = attention_inputs(c);
    (void)run_attention(in, dtype, kGuarded,
                        [&](const auto& x) { return causal_attention(x[0], x[1], x[2], kScale, sight_of(c, x)); });
    return calls;
  };
  EXPECT_EQ(run({"", 21, 8, 5, true, true}, at::kFloat), 0) << "dtype";
  EXPECT_EQ(run({"", 21, 12, 5, true, true}, at::kBFloat16), 0) << "not a multiple of 8";
  EXPECT_EQ(run({"", 21, 264, 5, true, true}, at::kBFloat16), 0) << "too wide";
  EXPECT_EQ(run({"", 21, 256, 5, true, true}, at::kBFloat16), 2);
  EXPECT_EQ(run({"", 21, 8, 0, false, false}, at::kBFloat16), 0) << "scaled_dot_product_attention does";
}

}  // namespace
}  // namespace coppice::kernels
