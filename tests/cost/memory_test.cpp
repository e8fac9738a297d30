#include "coppice/cost/memory.h"

#include <gtest/gtest.h>

#include "coppice/cost/step_time.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"

namespace coppice::cost {
namespace {

using testing::expect_error;

// 800 parameters of experts, 200 others.
ModelSize thousand() {
  ModelSize size{.experts = 8, .top_k = 2, .moe_layers = 3, .num_layers = 3, .model_dim = 16};
  size.parameters = {.total = 1000, .active = 400, .experts = 800};
  return size;
}

TEST(DeviceMemoryOf, OneDeviceHoldsAll) {
  const auto memory = device_memory(thousand(), {}, {});
  EXPECT_EQ(memory.weights, 2000u);
  EXPECT_EQ(memory.gradients, 4000u);
  EXPECT_EQ(memory.optimizer, 12000u);
  EXPECT_EQ(memory.total(), 18000u) << "18 bytes per parameter in bf16 with fp32 masters, gradients and moments";
}

// EP 4: 200 + 200 weights. ZeRO-1 over DP 8: others over 8 ranks, experts over the 2 that hold the same ones.
TEST(DeviceMemoryOf, ShardsExpertsAndOptimizerApart) {
  const auto memory = device_memory(thousand(), {.data = 8, .expert = 4, .zero1 = true}, {});
  EXPECT_EQ(memory.weights, 2u * 400);
  EXPECT_EQ(memory.gradients, 4u * 400);
  EXPECT_EQ(memory.optimizer, 12u * (100 + 25));
  EXPECT_EQ(device_memory(thousand(), {.data = 8, .expert = 4}, {}).optimizer, 12u * 400);
}

// 3 layers x top-2 rows, 3 of 4 of them to other ranks: 4 transfers of 16 values of 2 bytes, and two gates.
TEST(AllToAll, CountsEveryCopyThatLeaves) {
  EXPECT_DOUBLE_EQ(all_to_all_bytes(thousand(), {.data = 8, .expert = 4}), 3 * 2 * (4 * 16 * 2 + 8) * 0.75);
  EXPECT_DOUBLE_EQ(all_to_all_bytes(thousand(), {.data = 8}), 0);
}

// 8 experts on 3 ranks are 3, 3 and 2: the first rank has 300 of the 800 parameters. 5/8 of its pairs leave for experts
// elsewhere, and 3/8 of the pairs of each of the two others come.
TEST(UnevenExperts, AreThoseOfTheRankWithTheMost) {
  const Parallelism ranks{.data = 6, .expert = 3, .zero1 = true};
  const auto memory = device_memory(thousand(), ranks, {});
  EXPECT_EQ(memory.weights, 2u * 500);
  EXPECT_EQ(memory.optimizer, 12u * (150 + 34));
  EXPECT_DOUBLE_EQ(all_to_all_bytes(thousand(), ranks), 3 * 2 * (5.0 / 8 * (2 * 32 + 4) + 6.0 / 8 * (2 * 32 + 4)));
}

TEST(ParallelismCheck, RefusesWhatCannotBe) {
  const auto check = [](Parallelism p) { return [p] { check_parallelism(p, 8, 12); }; };
  check_parallelism({.data = 8, .expert = 4, .zero1 = true}, 8, 16);
  expect_error(ErrorCode::kUsage, {"data-parallel: 0"}, check({.data = 0}));
  expect_error(ErrorCode::kUsage, {"expert-parallel: -1"}, check({.data = 4, .expert = -1}));
  expect_error(ErrorCode::kUsage, {"expert-parallel: 3", "8"}, check({.data = 8, .expert = 3}));
  check({.data = 8, .expert = 8})();  // 12 experts: two on four of the ranks, one on the others
  expect_error(ErrorCode::kUsage, {"8 experts", "16 ranks"}, check({.data = 16, .expert = 16}));
  expect_error(ErrorCode::kUsage, {"zero1"}, check({.zero1 = true}));
}

TEST(StateDtype, RefusesOthers) {
  EXPECT_EQ(state_dtype_bytes("master-dtype", "none", true), 0);
  expect_error(ErrorCode::kUsage, {"moment-dtype: 'none'"}, [] { (void)state_dtype_bytes("moment-dtype", "none"); });
  expect_error(ErrorCode::kUsage, {"weight-dtype: 'int8'"}, [] { (void)state_dtype_bytes("weight-dtype", "int8"); });
}

TEST(ModelSizeOf, GrowsByExpertsAndRouterRowsAlone) {
  testing::TempDir dir;
  const auto path = testing::tiny_model(dir / "m", "qwen3_moe", {.sizes = {.num_experts = 8, .top_k = 2}});
  const auto model = families::open_model(path);
  const ModelSize before = model_size(model), after = model_size(model, 16);
  EXPECT_EQ(after.parameters.experts, 2 * before.parameters.experts);
  EXPECT_EQ(after.parameters.routers, 2 * before.parameters.routers);
  EXPECT_EQ(after.parameters.total - after.parameters.experts - after.parameters.routers,
            before.parameters.total - before.parameters.experts - before.parameters.routers);
  EXPECT_EQ(after.parameters.active - before.parameters.active, before.parameters.routers);
  EXPECT_EQ(before.moe_layers, 2);
}

TEST(StepLineFit, PredictsAThirdCountFromTwo) {
  const StepLine line = fit_step_line({{8, 1.0}, {16, 1.4}});
  EXPECT_NEAR(line.at(8), 1.0, 1e-12);
  EXPECT_NEAR(line.at(32), 2.2, 1e-12);
  const StepLine noisy = fit_step_line({{0, 0.0}, {1, 2.0}, {2, 2.0}});  // normal equations by hand: 1/3 + x
  EXPECT_NEAR(noisy.at_zero_s, 1.0 / 3, 1e-12);
  EXPECT_NEAR(noisy.per_expert_s, 1, 1e-12);
}

TEST(StepEstimateOf, IsArithmeticAndBytes) {
  const Device device{"d", 1e6, 1e6, 1e6, 0, "test"};
  const Parallelism ranks{.data = 8, .expert = 4};
  const StepEstimate step = estimate_step(thousand(), device, ranks, {}, {.batch_tokens = 80, .utilisation = 0.5});
  EXPECT_NEAR(step.compute_s, 6 * 400 * 10 / 0.5e6, 1e-12);
  EXPECT_NEAR(step.optimizer_s, 400 * (4 + 2 * 12 + 2) / 1e6, 1e-12);
  EXPECT_NEAR(step.all_to_all_s, (3 * 2 * (4 * 16 * 2 + 8) * 0.75 * 10 + 3 * 6 * 8) / 1e6, 1e-12);
  EXPECT_NEAR(step.reduce_s, 4 * (200 * 1.0 + 200 * 2 * 7.0 / 8) / 1e6, 1e-12);
}

}  // namespace
}  // namespace coppice::cost
