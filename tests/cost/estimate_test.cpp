#include "coppice/cost/estimate.h"

#include <gmock/gmock.h>

#include "coppice/cost/dense_estimate.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"

namespace coppice::cost {
namespace {

using ::testing::Contains;
using testing::expect_error;
using ::testing::HasSubstr;

class CostPlanOf : public ::testing::Test {
 protected:
  CostEstimate plan(CostOptions o, const std::vector<std::pair<int64_t, double>>& measured = {}) const {
    return estimate_cost(model, o, measured, std::nullopt);
  }
  void refuses(CostOptions o, std::initializer_list<const char*> words) const {
    expect_error(ErrorCode::kUsage, words, [&] { (void)plan(std::move(o)); });
  }

  testing::TempDir dir;
  families::Model model =
      families::open_model(testing::tiny_model(dir / "m", "qwen3_moe", {.sizes = {.num_experts = 8, .top_k = 2}}));
};

TEST_F(CostPlanOf, ThePapersRunsIsThePapersSaving) {
  const CostEstimate found =
      plan({.tokens_before = 380e9, .tokens_after = 190e9, .step_time_before = 2.2, .step_time_after = 4.18});
  EXPECT_EQ(found.basis, StepBasis::kGiven);
  ASSERT_EQ(found.rows.size(), 5u);
  EXPECT_TRUE(found.rows[2].is_yours);
  EXPECT_NEAR(found.rows[2].costs.saving(), 0.316, 5e-4);
  EXPECT_NEAR(found.rows[4].costs.saving(), 0.237, 5e-4);
  EXPECT_NEAR(found.rows[2].eta, 0.852, 2e-3);
  const std::string text = found.to_text();
  EXPECT_THAT(text, HasSubstr("31.6 %"));
  EXPECT_THAT(text, HasSubstr("arXiv:2604.19835v2 table 2b"));
  EXPECT_THAT(text, HasSubstr("<- yours"));
}

TEST_F(CostPlanOf, AStepThatIsNoLongerSavesNothing) {
  const CostEstimate found = plan({.step_time_before = 1, .step_time_after = 1});
  EXPECT_THAT(found.does_not_pay, Contains(HasSubstr("saves almost no time")));
  EXPECT_DOUBLE_EQ(found.rows[2].costs.saving(), 0);
}

TEST_F(CostPlanOf, AShortContinuationDoesNotPay) {
  const CostEstimate found =
      plan({.tokens_before = 100, .tokens_after = 3, .step_time_before = 1, .step_time_after = 2});
  EXPECT_THAT(found.does_not_pay, Contains(HasSubstr("too short")));
  EXPECT_TRUE(found.rows.front().is_yours);
  EXPECT_EQ(found.rows.front().remark, "too short to recover");
}

TEST_F(CostPlanOf, TimesThatNobodyMeasuredAreCalledAnEstimate) {
  EXPECT_THAT(plan({}).to_text(), HasSubstr("ESTIMATED from FLOPs and bytes for h100, not measured"));
  EXPECT_EQ(plan({}).to_json().at("step").at("basis").as_string(), "estimate");
}

TEST_F(CostPlanOf, SimulatesEveryNumberOfGpusOnACluster) {
  const CostOptions options{.expert_parallel = 4,
                            .expert_parallel_after = 8,
                            .zero1 = true,
                            .batch_tokens = 64 * 4096,
                            .cluster = "nvlink4-ndr",
                            .gpus = {8, 64}};
  const CostEstimate found = plan(options);
  EXPECT_EQ(found.basis, StepBasis::kSimulated);
  ASSERT_TRUE(found.scaling);
  ASSERT_EQ(found.scaling->rows.size(), 2u);
  const ScalingRow& first = found.scaling->rows[0];
  EXPECT_EQ(first.tokens, 8 * 4096);
  EXPECT_EQ(found.steps.before_s, first.before.total_s);
  EXPECT_EQ(found.steps.after_s, first.after.total_s);
  EXPECT_EQ(found.parallelism.data, 8) << "the first of --gpus";
  EXPECT_EQ(found.memory_after.total(), device_memory(found.after, {8, 8, true}, {}).total());
  // Besides rows each of 8 micro-batches sends counts for the 14 experts elsewhere, in 2 layers.
  EXPECT_NEAR(static_cast<double>(first.traffic_after.all_to_all),
              found.all_to_all_after * first.tokens + 8 * 2 * 14 * 8, 1);
  EXPECT_LT(found.all_to_all_before, found.all_to_all_after) << "3/4 of the rows leave 4 ranks, 7/8 leave 8";
  const std::string text = found.to_text();
  EXPECT_THAT(text, HasSubstr("SIMULATED for 8 h100 on nvlink4-ndr"));
  EXPECT_THAT(text, HasSubstr("8 data-parallel devices, experts over 4 and 8, ZeRO-1"));
  EXPECT_THAT(text, HasSubstr("64 GPUs: a step takes "));
  EXPECT_THAT(text, HasSubstr("DGX H100 data sheet"));
  const Json rows = found.to_json().at("cluster").at("rows");
  ASSERT_EQ(rows.items().size(), 2u);
  const Json& after = rows.items()[1].at("after");
  EXPECT_EQ(after.at("expert_parallel").as_int(), 8);
  double parts = 0;
  for (const char* part : {"compute", "optimizer", "all_to_all", "reduce", "gather"})
    parts += after.at(part).as_double();
  EXPECT_NEAR(parts, after.at("seconds").as_double(), 1e-12);
}

TEST_F(CostPlanOf, KeepsTheTokensOfAGpu) {
  const CostEstimate found = plan({.cluster = "nvlink4-ndr", .gpus = {8, 64}, .gpu_tokens = 8192});
  EXPECT_EQ(found.batch_tokens, 8 * 8192);
  for (const ScalingRow& row : found.scaling->rows) EXPECT_EQ(row.tokens, 8192) << row.gpus;
}

TEST_F(CostPlanOf, OptionsOfAClusterAreRefusedByName) {
  refuses({.cluster = "nvlink4"}, {"cluster", "nvlink4", "nvlink4-ndr"});
  refuses({.gpus = {8}}, {"--gpus", "--cluster"});
  refuses({.micro_batch = 2}, {"--micro-batch", "--cluster"});
  refuses({.once_per_rank = true}, {"--once-per-rank", "--cluster"});
  refuses({.data_parallel = 8, .cluster = "nvlink4-ndr", .gpus = {8}}, {"--data-parallel", "--gpus"});
  refuses({.device_network_rate = 1e9, .cluster = "nvlink4-ndr"}, {"--device-network-rate", "--cluster"});
  refuses({.cluster = "nvlink4-ndr", .gpus = {8, 0}}, {"gpus: 0"});
  refuses({.cluster = "nvlink4-ndr", .gpus = {8, 12}}, {"12 ranks", "nodes of 8"});
  refuses({.cluster = "nvlink4-ndr", .gpus = {4096}}, {"batch-tokens", "4096 ranks"});
  refuses({.expert_parallel = 8, .cluster = "nvlink4-ndr", .gpus = {8, 4}}, {"expert-parallel: 8"});
  refuses({.expert_parallel = 4, .expert_parallel_after = 32, .cluster = "nvlink4-ndr", .gpus = {64}},
          {"16 experts", "32 ranks"});
  refuses({.gpu_tokens = 4096}, {"--gpu-tokens", "--cluster"});
  refuses({.cluster = "nvlink4-ndr", .gpus = {8}, .gpu_tokens = 2048}, {"8 ranks", "fewer than one sequence"});
  refuses({.cluster = "nvlink4-ndr", .gpu_tokens = 0}, {"gpu-tokens: 0"});
  refuses({.batch_tokens = 8192, .cluster = "nvlink4-ndr", .gpu_tokens = 8192}, {"--batch-tokens", "--gpu-tokens"});
  refuses({.cluster = "nvlink4-ndr", .micro_batch = 0}, {"micro-batch: 0"});
  refuses({.step_time_before = 1, .step_time_after = 2, .cluster = "nvlink4-ndr"}, {"--cluster", "given"});
}

TEST_F(CostPlanOf, PredictsACountThatWasNotMeasured) {
  const CostEstimate found = plan({.experts = plan::ExpertCount{"32"}}, {{8, 1.0}, {16, 1.4}});
  EXPECT_NEAR(found.steps.after_s, 2.2, 1e-12);
  EXPECT_THAT(found.basis_text, HasSubstr("32 predicted"));
  EXPECT_THAT(found.does_not_pay, Contains(HasSubstr("more than doubling")));
  expect_error(ErrorCode::kUsage, {"no positive time"},
               [&] { (void)plan({.experts = plan::ExpertCount{"64"}}, {{8, 1.0}, {16, 0.5}}); });
}

TEST_F(CostPlanOf, OwnRunsReplaceTheCurve) {
  LocalFit fit{.closure = fit_closure({{1, 0.5}}, "your runs"), .num_comparisons = 1};
  fit.gap = report::spread({0.2});
  fit.step_times = {{8, 1.0}, {16, 1.5}};
  const CostEstimate found = estimate_cost(model, {}, {}, fit);
  EXPECT_FALSE(found.uniform_closure);
  EXPECT_NEAR(found.rows[4].eta, 0.5, 1e-6);
  EXPECT_EQ(found.basis, StepBasis::kRuns);
  EXPECT_DOUBLE_EQ(*found.loss_gap, 0.2);
  EXPECT_THAT(found.to_text(), HasSubstr("your runs"));
}

// A step that was timed here is one of 2048 tokens, whatever the cluster's batch is.
TEST_F(CostPlanOf, HoursAreOfTheBatchThatWasTimed) {
  const CostOptions options{.tokens_before = 2048, .tokens_after = 2048, .measure = true};
  const CostEstimate found = plan(options, {{8, 3600}, {16, 7200}});
  EXPECT_DOUBLE_EQ(found.batch_tokens, 2048);
  EXPECT_THAT(found.to_text(), HasSubstr("16 experts from the first token               4 "));
  refuses({.step_time_before = 1, .step_time_after = 2, .batch_tokens = -5}, {"batch-tokens"});
}

TEST_F(CostPlanOf, HostileOptionsAreRefusedByName) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  refuses({.tokens_before = -1}, {"tokens-before", "-1"});
  refuses({.tokens_after = 0}, {"tokens-after"});
  refuses({.loss_gap = nan}, {"loss-gap"});
  refuses({.step_time_before = 1}, {"step-time"});
  refuses({.step_time_before = 1, .step_time_after = 0}, {"step-time-after"});
  refuses({.step_time_before = 1, .step_time_after = 2, .utilisation = 0.3}, {"--utilisation", "given"});
  refuses({.target_closure = 1}, {"target-closure"});
  refuses({.device = "h1000"}, {"device", "h100"});
  refuses({.utilisation = 1.5}, {"utilisation"});
  refuses({.batch_tokens = 0}, {"batch-tokens"});
  refuses({.top_k = 4}, {"--top-k", "experts already"});
  refuses({.threads = 2}, {"--threads", "--measure"});
  refuses({.experts = plan::ExpertCount{"8"}}, {"8 of 8"});
  refuses({.expert_parallel = 3}, {"expert-parallel: 3"});
  refuses({.moment_dtype = "int4"}, {"moment-dtype"});
  refuses({.step_time_before = 1, .step_time_after = 2, .measure = true}, {"measure"});
}

// An option that was given has no effect whatever its value, the default too.
TEST_F(CostPlanOf, DefaultsThatWereGivenAreRefusedWhereTheyHaveNoEffect) {
  for (const char* name : {"device", "utilisation", "sequence-length"}) {
    CostOptions options{.step_time_before = 1, .step_time_after = 2};
    options.given.add_flag(name);
    refuses(options, {name, "no effect", "given"});
  }
}

TEST(DensePlanOf, GivesBothBounds) {
  testing::TempDir dir;
  const auto model = families::open_model(testing::tiny_model(dir / "d", "llama"));
  const auto verdict = [&](double after) {
    return estimate_dense_cost(model, {.top_k = 1, .tokens_before = 100, .tokens_after = after}).verdict;
  };
  EXPECT_THAT(verdict(20), HasSubstr("pays by both"));
  EXPECT_THAT(verdict(60), HasSubstr("bounds disagree"));
  EXPECT_THAT(verdict(150), HasSubstr("does not pay by either"));
  EXPECT_THAT(verdict(250), HasSubstr("train from scratch"));
  const DenseEstimate plan = estimate_dense_cost(model, {});
  EXPECT_THAT(plan.to_text(), HasSubstr("arXiv:2409.02060"));
  EXPECT_THAT(plan.to_text(), HasSubstr("arXiv:2212.05055"));
  const auto& before = plan.before.parameters;
  EXPECT_EQ(plan.after.parameters.experts, 8 * before.dense);
  const int64_t routers = 8 * plan.before.model_dim * plan.before.num_layers;
  EXPECT_EQ(plan.after.parameters.active, before.total + before.dense + routers) << "top-2 of the dense width";
}

TEST(DensePlanOf, RefusesWhatHasNoEffectOrCannotBe) {
  testing::TempDir dir;
  const auto model = families::open_model(testing::tiny_model(dir / "d", "llama"));
  const auto refuses = [&](CostOptions o, std::initializer_list<const char*> words) {
    expect_error(ErrorCode::kUsage, words, [&] { (void)estimate_dense_cost(model, o); });
  };
  refuses({.step_time_before = 1, .step_time_after = 2}, {"--step-time-before", "dense"});
  refuses({.fit = {"x"}}, {"--fit", "dense"});
  refuses({.top_k = 9}, {"top-k: 9 of 8"});
  refuses({.granularity = 3}, {"granularity: 3"});
  refuses({.top_k = 0}, {"top-k: 0"});
}

}  // namespace
}  // namespace coppice::cost
