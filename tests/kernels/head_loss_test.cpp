#include "coppice/kernels/head_loss.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/kernels/head_loss_detail.h"
#include "tests/guarded/devices.h"

namespace coppice::kernels {
namespace {

constexpr int64_t kDim = 24;

struct Head {
  at::Tensor x_TD, w_VD, target_T;
};

Head make_head(int64_t tokens, int64_t vocabulary, int64_t dim = kDim) {
  at::manual_seed(3);
  Head head{at::randn({tokens, dim}), at::randn({vocabulary, dim}), at::randint(0, vocabulary, {tokens}, at::kLong)};
  head.target_T.narrow(0, 1, tokens / 4).fill_(-1);
  return head;
}

at::Tensor plain_loss(const at::Tensor& x_TD, const at::Tensor& w_VD, const at::Tensor& target_T,
                      at::Reduction::Reduction how) {
  return at::cross_entropy_loss(at::linear(x_TD, w_VD), target_T, {}, how, /*ignore_index=*/-1);
}

template <class F>
std::vector<at::Tensor> run(const Head& head, at::ScalarType dtype, const F& f) {
  const auto x = head.x_TD.to(dtype).detach().clone().set_requires_grad(true);
  const auto w = head.w_VD.to(dtype).detach().clone().set_requires_grad(true);
  const auto loss = f(x, w) * 0.5;  // so that the incoming gradient is not 1
  auto out = torch::autograd::grad({loss}, {x, w});
  out.insert(out.begin(), loss.detach());
  return out;
}

void expect_near(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& wanted, double tolerance) {
  for (size_t i = 0; i < found.size(); ++i) {
    const auto error = (found[i].to(at::kDouble) - wanted[i]).abs().max().item<double>();
    EXPECT_LE(error, tolerance * wanted[i].abs().max().item<double>()) << "tensor " << i;
  }
}

// 5,000 tokens take several chunks at either size of the vocabulary.
TEST(HeadLoss, IsTheCrossEntropyOfTheLogitsWithItsGradients) {
  for (const int64_t vocabulary : {2, 1003}) {
    const auto head = make_head(vocabulary == 2 ? 40 : 5000, vocabulary);
    const auto wanted = run(head, at::kDouble, [&](const auto& x, const auto& w) {
      return plain_loss(x, w, head.target_T, at::Reduction::Mean);
    });
    const auto ours = [&](const auto& x, const auto& w) { return head_loss(x, w, head.target_T); };
    expect_near(run(head, at::kFloat, ours), wanted, 1e-5);
    expect_near(run(head, at::kBFloat16, ours), wanted, 3e-2);
  }
}

// These sizes are computed in lanes; the largest vocabulary in chunks of 32 tokens.
TEST(HeadLoss, OfASmallModelIsTheCrossEntropyWithTheSameBitsForAnyNumberOfThreads) {
  for (const int64_t vocabulary : {48, 1024, 4096}) {
    const auto head = make_head(300, vocabulary, 64);
    const auto wanted = run(head, at::kDouble, [&](const auto& x, const auto& w) {
      return plain_loss(x, w, head.target_T, at::Reduction::Mean);
    });
    const auto ours = [&](const auto& x, const auto& w) { return head_loss(x, w, head.target_T); };
    at::set_num_threads(1);
    const auto found = run(head, at::kFloat, ours);
    expect_near(found, wanted, 1e-5);
    at::set_num_threads(3);
    const auto by_three = run(head, at::kFloat, ours);
    for (size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(by_three[i].equal(found[i])) << i;
  }
}

// Chunks of any number of tokens.
TEST(HeadLoss, OfLibtorchIsTheCrossEntropyWithItsGradients) {
  const auto head = make_head(300, 77);
  const auto wanted = run(head, at::kDouble, [&](const auto& x, const auto& w) {
    return plain_loss(x, w, head.target_T, at::Reduction::Mean) * 2;
  });
  for (const int64_t rows : {7, 150, 1000}) {
    for (const auto& [dtype, tolerance] :
         {std::tuple(at::kDouble, 1e-12), std::tuple(at::kFloat, 1e-5), std::tuple(at::kBFloat16, 3e-2)}) {
      const detail::HeadInputs in{head.x_TD.to(dtype), head.w_VD.to(dtype), head.target_T, true, true};
      const auto out = aten::head_forward_by(in, rows);
      expect_near({out.mean, out.grad_x_TD, out.grad_w_VD}, wanted, tolerance);
      EXPECT_EQ(out.grad_w_VD.scalar_type(), dtype);
    }
  }
}

TEST(HeadLoss, OnAnotherDeviceIsTheOneOfLibtorch) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto head = make_head(300, 77);
    const auto found = run(head, dtype, [&](const auto& x, const auto& w) {
      const auto there = [](const at::Tensor& t) { return t.to(guarded::kGuarded); };
      return head_loss(there(x), there(w), there(head.target_T)).to(at::kCPU);
    });
    auto wanted = aten::head_forward({head.x_TD.to(dtype), head.w_VD.to(dtype), head.target_T, true, true});
    const auto half = at::full({}, 0.5f);
    aten::scale_in_place(wanted.grad_x_TD, half);
    aten::scale_in_place(wanted.grad_w_VD, half);
    EXPECT_TRUE(found[0].equal(wanted.mean * 0.5));
    EXPECT_TRUE(found[1].equal(wanted.grad_x_TD));
    EXPECT_TRUE(found[2].equal(wanted.grad_w_VD));
  }
}

// A bf16 of 8 bits times a factor that is no bf16: one rounding.
TEST(HeadLoss, OfLibtorchScalesGradientsByTheWholeFactor) {
  const auto values = at::randn({1000}).to(at::kBFloat16), factor = at::full({}, 0.3001f);
  const auto wanted = (values.to(at::kFloat) * 0.3001f).to(at::kBFloat16);
  auto found = values.clone();
  aten::scale_in_place(found, factor);
  EXPECT_TRUE(found.equal(wanted));
}

TEST(HeadLoss, IsZeroIfNoTargetCounts) {
  auto head = make_head(8, 5);
  head.target_T.fill_(-1);
  for (const at::Device device : {guarded::kCpu, guarded::kGuarded}) {
    const auto found = run(head, at::kFloat, [&](const auto& x, const auto& w) {
      return head_loss(x.to(device), w.to(device), head.target_T.to(device)).to(at::kCPU);
    });
    for (const auto& t : found) EXPECT_EQ(t.abs().max().template item<float>(), 0.0f);
  }
}

// Logits of +-10^4: a plain exp would overflow.
TEST(HeadLoss, StaysFiniteForLargeLogits) {
  const auto x = at::full({2, 1}, 100.0, at::kFloat), w = at::full({2, 1}, 100.0, at::kFloat);
  w[1].fill_(-100.0);
  auto target = at::zeros({2}, at::kLong);
  target[1] = 1;
  EXPECT_FLOAT_EQ(head_loss(x, w, target).item<float>(), 1e4f);
}

TEST(HeadLoss, NamesATargetOutsideTheVocabulary) {
  auto head = make_head(8, 5);
  head.target_T[6] = 5;
  try {
    (void)head_loss(head.x_TD, head.w_VD, head.target_T);
    FAIL() << "a target past the vocabulary was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::kFormat);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("target id 5 at position 6"));
  }
}

// Not silently: whoever uploads targets checks them before, and this is what is left if they did not.
TEST(HeadLoss, RefusesATargetOutsideTheVocabularyOnAnotherDevice) {
  for (const int64_t wrong : {-2, 5}) {
    auto head = make_head(8, 5);
    head.target_T[6] = wrong;
    const auto there = [](const at::Tensor& t) { return t.to(guarded::kGuarded); };
    EXPECT_THROW((void)head_loss(there(head.x_TD), there(head.w_VD), there(head.target_T)), c10::Error);
  }
}

TEST(HeadTokenLosses, AreThoseOfEachTokenAndZeroWhereNoneCounts) {
  const auto head = make_head(300, 77);
  const auto wanted =
      plain_loss(head.x_TD.to(at::kDouble), head.w_VD.to(at::kDouble), head.target_T, at::Reduction::None);
  for (const at::Device device : {guarded::kCpu, guarded::kGuarded}) {
    const auto found =
        head_token_losses(head.x_TD.to(device), head.w_VD.to(device), head.target_T.to(device)).to(at::kCPU);
    expect_near({found}, {wanted}, 1e-6);
  }
}

}  // namespace
}  // namespace coppice::kernels
