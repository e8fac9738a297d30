#include "coppice/step/balance.h"

#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "coppice/models/generate.h"
#include "coppice/nn/host.h"
#include "tests/guarded/devices.h"
#include "tests/testing/errors.h"

namespace coppice::step {
namespace {

families::ModelConfig config(const char* family) {
  models::ModelSizes sizes;
  sizes.family = family;
  return families::read_config(models::make_config(sizes, io::Dtype::kF32), "test");
}

class BalanceUpdate : public ::testing::TestWithParam<at::Device> {
 protected:
  static at::Tensor counts(std::vector<int64_t> values) { return at::tensor(values, at::kLong).to(GetParam()); }
  static at::Tensor biases(std::vector<float> values) { return at::tensor(values).to(GetParam()); }
};
class BalanceWaking : public BalanceUpdate {};
INSTANTIATE_TEST_SUITE_P(Devices, BalanceUpdate, guarded::both_devices(), guarded::device_name);
INSTANTIATE_TEST_SUITE_P(Devices, BalanceWaking, guarded::both_devices(), guarded::device_name);

TEST_P(BalanceUpdate, MovesEachBiasOneStepTowardsEvenLoad) {
  const at::Tensor bias = biases(std::vector<float>(4));
  update_selection_bias(bias, counts({9, 5, 1, 5}), {}, 1e-3, false);
  EXPECT_EQ(bias[0].item<float>(), -1e-3f);
  EXPECT_EQ(bias[1].item<float>(), 0.0f) << "an exactly even load does not move";
  EXPECT_EQ(bias[2].item<float>(), 1e-3f);
}

TEST_P(BalanceUpdate, ComparesInIntegersWhereTheMeanIsNone) {
  const at::Tensor bias = biases(std::vector<float>(3));
  update_selection_bias(bias, counts({1, 1, 2}), {}, 1e-3, false);  // mean 4/3
  EXPECT_EQ(bias[0].item<float>(), 1e-3f);
  EXPECT_EQ(bias[2].item<float>(), -1e-3f);
}

TEST_P(BalanceUpdate, RecentringKeepsTheMeanAtZeroAndDifferences) {
  const at::Tensor bias = biases({1, 2, 6});
  update_selection_bias(bias, counts({2, 2, 2}), {}, 1e-3, true);
  EXPECT_EQ(bias.sum().item<float>(), 0.0f);
  EXPECT_EQ(bias[2].item<float>() - bias[0].item<float>(), 5.0f);
}

TEST_P(BalanceUpdate, MovesTheExpertsOfALineageTogether) {
  const at::Tensor bias = biases(std::vector<float>(5));
  update_selection_bias(bias, counts({9, 5, 1}), counts({0, 1, 1, 2, 0}), 1e-3, false);
  EXPECT_EQ(nn::to_host<float>(bias), (std::vector<float>{-1e-3f, 0, 0, 1e-3f, -1e-3f}));
}

TEST_P(BalanceWaking, RaisesSleepersInAStraightLineToTheirParents) {
  const at::Tensor bias = biases({0.5, -0.25, -1.5, -0.5});
  const std::vector<uint32_t> parents{0, 1, 0, 0};
  EXPECT_EQ(depths_below_lineage(bias, parents), (std::vector<double>{0, 0, 2, 1}));
  std::vector<float> third;
  for (int64_t left = 4; left >= 1; --left) {
    wake(bias, counts({0, 1, 0, 0}), 2, left);
    third.push_back(bias[2].item<float>());
  }
  EXPECT_EQ(third, (std::vector<float>{-1.0, -0.5, 0, 0.5}));
  EXPECT_EQ(bias[0].item<float>(), 0.5f);
  EXPECT_EQ(bias[1].item<float>(), -0.25f) << "has no siblings";
  EXPECT_EQ(bias[3].item<float>(), 0.5f);
}

TEST(BalanceAuxCoefficient, IsTheCheckpointsOwnUnlessGiven) {
  const auto with = [](const char* family, const char* key, const Json& value) {
    models::ModelSizes sizes;
    sizes.family = family;
    sizes.num_kv_heads = sizes.num_heads;  // as latents want it
    Json json = models::make_config(sizes, io::Dtype::kF32);
    json.erase(key);
    if (!value.is_null()) json[key] = value;
    return families::read_config(json, "test");
  };
  EXPECT_EQ(aux_coefficient({}, with("qwen3_moe", "router_aux_loss_coef", Json(0.0123))), 0.0123);
  EXPECT_EQ(aux_coefficient(0.5, with("qwen3_moe", "router_aux_loss_coef", Json(0.0123))), 0.5);
  EXPECT_EQ(aux_coefficient({}, with("qwen3_moe", "router_aux_loss_coef", Json(0.0))), 0.0);
  EXPECT_EQ(aux_coefficient({}, with("qwen3_moe", "router_aux_loss_coef", {})), 0.001) << "as transformers has it";
  EXPECT_EQ(aux_coefficient({}, with("olmoe", "router_aux_loss_coef", {})), 0.01);
  EXPECT_EQ(aux_coefficient({}, with("minimax_m2", "router_aux_loss_coef", Json(0.002))), 0.002);
  EXPECT_EQ(aux_coefficient({}, with("deepseek_v2", "aux_loss_alpha", Json(0.003))), 0.003);
  EXPECT_EQ(aux_coefficient({}, with("deepseek_v3", "aux_loss_alpha", {})), kAuxCoefficient);
  EXPECT_EQ(aux_coefficient({}, config("glm4_moe")), kAuxCoefficient);
}

TEST(BalanceForms, AreKnownByName) {
  EXPECT_EQ(balance_form("per_layer"), nn::BalanceForm::kPerLayer);
  EXPECT_EQ(balance_form("transformers"), nn::BalanceForm::kTransformers);
  testing::expect_error(ErrorCode::kUsage, {"balance.form", "'per_layers'", "per_layer"},
                        [] { (void)balance_form("per_layers"); });
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
}  // namespace coppice::step
