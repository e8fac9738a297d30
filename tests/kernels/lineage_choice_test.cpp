#include "coppice/kernels/lineage_choice.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/guarded/devices.h"

namespace coppice::kernels {
namespace {

constexpr int64_t kTokens = 500;
// Numbers of tokens and seeds are unsigned, in tensors of signed integers.
constexpr uint64_t kNumbers[] = {0, 12345, ~uint64_t{0} - 250, uint64_t{1} << 63};

at::Tensor children() {  // of 8 experts in 4 lineages
  return at::tensor(std::vector<int64_t>{0, 3, 5, 1, -1, -1, 2, 4, -1, 6, 7, -1}, at::kLong).view({4, 3});
}

TEST(LineageChoiceDevices, HoldTheSameTokens) {
  const auto scores_TE = at::randn({kTokens, 8});
  for (const uint64_t number : kNumbers) {
    for (const double share : {0.0, 0.3, 1.0}) {
      const auto here_T = tokens_held(scores_TE, number, number ^ 7, share);
      const auto there_T = tokens_held(scores_TE.to(guarded::kGuarded), number, number ^ 7, share);
      EXPECT_TRUE(at::equal(here_T, there_T.cpu())) << number << " " << share;
    }
  }
}

TEST(LineageChoiceDevices, PickTheSameChildren) {
  at::manual_seed(3);
  const auto apart_TE = at::randn({kTokens, 8});
  const auto equal_TE = at::randint(3, {kTokens, 8}, at::kFloat);  // many ties
  const auto bias_E = at::randint(2, {8}, at::kFloat);
  for (const auto& logits_TE : {apart_TE, equal_TE}) {
    for (const auto& bias : {at::Tensor(), bias_E}) {
      const auto choice_TE = bias.defined() ? logits_TE.sigmoid() + bias : logits_TE;
      for (const uint64_t number : kNumbers) {
        const auto on = [&](at::Device device) {
          return best_children(choice_TE.to(device), logits_TE.to(device), bias.defined() ? bias.to(device) : bias,
                               children().to(device), number ^ 99, number);
        };
        const auto here = on(guarded::kCpu), there = on(guarded::kGuarded);
        EXPECT_TRUE(at::equal(here.child_TL, there.child_TL.cpu()));
        EXPECT_TRUE(at::equal(here.score_TL, there.score_TL.cpu()));
      }
    }
  }
}

TEST(LineageChoiceDevices, ShareTiesEvenly) {
  const auto same_TE = at::randn({1, 8}).expand({kTokens, 8}).mul(0).contiguous();
  for (const auto device : {guarded::kCpu, guarded::kGuarded}) {
    const auto child_T = best_children(same_TE.to(device), same_TE.to(device), {}, children().to(device), 1, 0)
                             .child_TL.cpu()
                             .select(1, 0);
    for (const int64_t expert : {0, 3, 5}) EXPECT_NEAR(child_T.eq(expert).sum().item<double>(), kTokens / 3.0, 50);
  }
}

}  // namespace
}  // namespace coppice::kernels
