#include "coppice/train/balance.h"

#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "coppice/families/generate.h"
#include "tests/testing/errors.h"

namespace coppice::train {
namespace {

families::ModelConfig config(const char* family) {
  families::ModelSizes sizes;
  sizes.family = family;
  return families::read_config(families::make_config(sizes, io::Dtype::kF32), "test");
}

at::Tensor counts(std::vector<int64_t> values) { return at::tensor(values, at::kLong); }

TEST(BalanceUpdate, MovesEachBiasOneStepTowardsEvenLoad) {
  const at::Tensor bias = at::zeros({4}, at::kFloat);
  update_selection_bias(bias, counts({9, 5, 1, 5}), {}, 1e-3, false);
  EXPECT_EQ(bias[0].item<float>(), -1e-3f);
  EXPECT_EQ(bias[1].item<float>(), 0.0f) << "an exactly even load does not move";
  EXPECT_EQ(bias[2].item<float>(), 1e-3f);
}

TEST(BalanceUpdate, ComparesInIntegersWhereTheMeanIsNone) {
  const at::Tensor bias = at::zeros({3}, at::kFloat);
  update_selection_bias(bias, counts({1, 1, 2}), {}, 1e-3, false);  // mean 4/3
  EXPECT_EQ(bias[0].item<float>(), 1e-3f);
  EXPECT_EQ(bias[2].item<float>(), -1e-3f);
}

TEST(BalanceUpdate, RecentringKeepsTheMeanAtZeroAndDifferences) {
  const at::Tensor bias = at::tensor(std::vector<float>{1, 2, 6});
  update_selection_bias(bias, counts({2, 2, 2}), {}, 1e-3, true);
  EXPECT_EQ(bias.sum().item<float>(), 0.0f);
  EXPECT_EQ(bias[2].item<float>() - bias[0].item<float>(), 5.0f);
}

TEST(BalanceUpdate, MovesTheExpertsOfALineageTogether) {
  const at::Tensor bias = at::zeros({5}, at::kFloat);
  const std::vector<uint32_t> parents{0, 1, 1, 2, 0};
  update_selection_bias(bias, counts({9, 5, 1}), parents, 1e-3, false);
  const std::vector<float> found(bias.const_data_ptr<float>(), bias.const_data_ptr<float>() + 5);
  EXPECT_EQ(found, (std::vector<float>{-1e-3f, 0, 0, 1e-3f, -1e-3f}));
}

TEST(BalanceKindOf, AutoFollowsTheFamily) {
  EXPECT_EQ(balance_kind("auto", config("glm4_moe")), BalanceKind::kLossFree);
  EXPECT_EQ(balance_kind("auto", config("qwen3_moe")), BalanceKind::kAux);
  EXPECT_EQ(balance_kind("auto", config("minimax_m2")), BalanceKind::kAux) << "others round its bias to bf16";
  EXPECT_EQ(balance_kind("loss_free", config("minimax_m2")), BalanceKind::kLossFree);
  EXPECT_EQ(balance_kind("auto", config("llama")), BalanceKind::kNone);
  EXPECT_EQ(balance_kind("aux", config("glm4_moe")), BalanceKind::kAux);
}

TEST(BalanceKindOf, RefusesWhatTheModelCannotDo) {
  testing::expect_error(ErrorCode::kUsage, {"loss_free", "mixtral", "aux"},
                        [] { (void)balance_kind("loss_free", config("mixtral")); });
  testing::expect_error(ErrorCode::kUsage, {"no experts"}, [] { (void)balance_kind("aux", config("llama")); });
  testing::expect_error(ErrorCode::kUsage, {"'lossfree'", "loss_free"},
                        [] { (void)balance_kind("lossfree", config("glm4_moe")); });
}

}  // namespace
}  // namespace coppice::train
