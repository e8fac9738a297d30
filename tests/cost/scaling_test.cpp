#include "coppice/cost/scaling.h"

#include <gmock/gmock.h>

namespace coppice::cost {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

SimulatedStep step(double compute, double all_to_all, double reduce) {
  return {
      .total_s = compute + all_to_all + reduce, .compute_s = compute, .all_to_all_s = all_to_all, .reduce_s = reduce};
}

Scaling made() {
  Scaling scaling{.cluster = find_cluster("nvlink4-ndr")};
  scaling.rows = {{.gpus = 1, .before = step(1, 0, 0), .after = step(1.001, 0, 0)},
                  {.gpus = 8, .before = step(1, 0.1, 0), .after = step(1, 0.25, 0.05)},
                  {.gpus = 64, .before = step(1, 0.1, 0), .after = step(1.1, 0.05, 0)},
                  {.gpus = 512, .before = step(1, 1, 0), .after = step(1, 0.5, 0)}};
  return scaling;
}

TEST(ScalingReasons, AreTheSharesOfTheDifference) {
  EXPECT_THAT(
      made().reasons(32, 64),
      ElementsAre("1 GPU: a step takes as long with 64 experts as with 32.",
                  "8 GPUs: a step takes 1.18 times as long with 64 experts as with 32. The difference of 200 ms "
                  "consists of: all-to-all 75 %, gradients 25 %.",
                  "64 GPUs: a step takes 1.05 times as long with 64 experts as with 32. The difference of 50 ms "
                  "consists of: compute 200 %, all-to-all -100 %.",
                  "512 GPUs: a step takes 0.75 times as long with 64 experts as with 32. The difference of 500 "
                  "ms consists of: all-to-all 100 %."));
}

TEST(ScalingReasons, SayWhatDoesNotFit) {
  Scaling scaling = made();
  scaling.memory_bytes = 100;
  scaling.rows.resize(3);
  scaling.rows[0].state_after = 100;
  scaling.rows[1].state_after = 101;
  scaling.rows[2].state_before = 200;
  scaling.rows[2].state_after = 300;
  const auto reasons = scaling.reasons(32, 64);
  EXPECT_THAT(reasons[0], Not(HasSubstr("fit")));
  EXPECT_THAT(reasons[1], HasSubstr("It does not fit: the training state of a GPU with 64 experts takes 101 bytes"));
  EXPECT_THAT(reasons[2], HasSubstr("It does not fit: the training state of a GPU with 32 experts takes 200 bytes"));
  const Json fits = scaling.to_json().at("rows").items()[1].at("fits");
  EXPECT_TRUE(fits.items()[0].as_bool());
  EXPECT_FALSE(fits.items()[1].as_bool());
  scaling.memory_bytes = 0;
  EXPECT_THAT(scaling.reasons(32, 64)[2], Not(HasSubstr("fit"))) << "the memory is not known";
}

TEST(ScalingText, HasTwoLinesForEachNumberOfGpus) {
  const std::string text = made().to_text(32, 64);
  EXPECT_THAT(text, HasSubstr("   8       32 "));
  EXPECT_THAT(text, HasSubstr("   8       64 "));
  EXPECT_THAT(text, HasSubstr("1100 ms"));
  EXPECT_EQ(made().to_json().at("rows").items().size(), 4u);
}

}  // namespace
}  // namespace coppice::cost
