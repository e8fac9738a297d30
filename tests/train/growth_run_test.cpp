// Growth in mid-run, as a run file asks for it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "coppice/base/text.h"
#include "coppice/grow/expand.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/utility.h"
#include "coppice/score/score.h"
#include "coppice/train/run.h"
#include "coppice/train/run_directory.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/train/tiny_run.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempDir;

Json stages(const std::string& json) { return Json::parse(json, "test"); }

TrainOptions growing_run(const TempDir& dir, const std::string& growth) {
  auto o = testing::tiny_run(dir.path());
  o.growth = stages(growth);
  o.validate_every = 5;
  o.out = dir / "run";
  return o;
}

std::vector<Json> events(const fs::path& run, std::string_view name) {
  std::vector<Json> out;
  for (Json& line : testing::metrics(run, "event")) {
    if (line.at("event").as_string() == name) out.push_back(std::move(line));
  }
  return out;
}

// The parameter is the compute dtype, with moments in the same.
class GrowInMidRun : public ::testing::TestWithParam<const char*> {};

TEST_P(GrowInMidRun, MakesTheBytesThatExpandMakesOfTheCheckpointBefore) {
  const TempDir dir;
  auto o = growing_run(dir, R"([{"at_step": 8, "experts": "7", "score_batches": 3, "expert_init": "copy_noise"}])");
  o.dtype = o.moments = GetParam();
  (void)train(o);
  const auto before = checkpoint_path(o.out, 8), folder = growth_path(o.out, 8);
  ASSERT_TRUE(fs::exists(before)) << "the model before an expansion is kept";
  EXPECT_EQ(families::open_model(before).config.num_experts, 4);

  // A second run that goes on from what `expand` makes by the plan, with nothing else in between.
  const auto plan = plan::GrowthPlan::read(folder / "plan.toml");
  grow::expand(families::open_model(before), plan, {.out = dir / "expanded", .threads = 1});
  auto again = o;
  again.growth = Json();
  again.model_path = dir / "expanded";
  again.start = "continue";
  again.out = dir / "again";
  (void)train(again);
  const auto whole = testing::metrics(o.out, "loss"), second = testing::metrics(again.out, "loss");
  ASSERT_EQ(whole.size(), 20u);
  ASSERT_EQ(second.size(), 12u);
  for (size_t i = 0; i < second.size(); ++i) {
    EXPECT_EQ(second[i].at("loss").dump(), whole[8 + i].at("loss").dump()) << "step " << 9 + i;
  }
  EXPECT_EQ(testing::tensor_files(checkpoint_path(o.out, 20)), testing::tensor_files(checkpoint_path(again.out, 20)));
}

TEST_P(GrowInMidRun, ResumesAcrossGrowthsBitForBit) {
  const TempDir dir;
  const char* const growth = R"([
    {"at_step": 6, "experts": "6", "score_batches": 2, "rewarmup": 2, "balance_rate": 0.01, "balance_steps": 3},
    {"at_step": 14, "experts": "2x", "select": "uniform", "optimizer_state": "reset", "lr": 0.005, "rewarmup": 2}])";
  auto o = growing_run(dir, growth);
  o.dtype = o.moments = GetParam();
  o.handover = "release";
  o.handover_steps = 5;
  (void)train(o);
  auto parts = o;
  parts.out = dir / "parts";
  for (const int64_t stop : {3, 6, 7, 12, 14, 16, 20}) {
    parts.stop_at = stop == 20 ? 0 : stop;
    EXPECT_EQ(train(parts).last_step, stop);
    parts.resume = true;
  }
  EXPECT_EQ(testing::exact_losses(dir / "parts"), testing::exact_losses(o.out));
  EXPECT_EQ(testing::tensor_files(checkpoint_path(parts.out, 20)), testing::tensor_files(checkpoint_path(o.out, 20)));
  EXPECT_EQ(families::open_model(checkpoint_path(o.out, 20)).config.num_experts, 12);
  EXPECT_EQ(Json::read(checkpoint_path(parts.out, 20) / "coppice.json").at("steps").items().size(), 2u);
}
INSTANTIATE_TEST_SUITE_P(Dtypes, GrowInMidRun, ::testing::Values("f32", "bf16"), [](const auto& p) { return p.param; });

TEST(GrowInMidRunRecord, SaysWhatWasChosenAndWhy) {
  const TempDir dir;
  const auto o = growing_run(dir, R"([{"at_step": 10, "experts": "2x", "score_batches": 4}])");
  (void)train(o);
  const auto grown = events(o.out, "growth");
  ASSERT_EQ(grown.size(), 1u);
  EXPECT_EQ(grown[0].at("step").as_int(), 10);
  EXPECT_EQ(grown[0].at("experts").dump(), "[4, 8]");
  EXPECT_EQ(grown[0].at("plan").as_string(), "growth-step-00000010/plan.toml");
  const auto scores = plan::Scores::read(growth_path(o.out, 10) / "scores.json");
  EXPECT_EQ(scores.batches, 4u);
  EXPECT_EQ(scores.model_digest, families::open_model(checkpoint_path(o.out, 10)).digest())
      << "so that `expand --scores` takes them";
  EXPECT_TRUE(scores.metrics.contains("approx_fisher"));
  EXPECT_TRUE(scores.metrics.contains("output_error"));
  EXPECT_EQ(scores.second_moment, "trainer");
  const auto lineage = plan::read_lineage(checkpoint_path(o.out, 20));
  ASSERT_TRUE(lineage.has_value());
  EXPECT_EQ(lineage->at("steps").items()[0].at("command").as_string(), "train");

  const auto lines = testing::metrics(o.out, "loss");
  EXPECT_EQ(lines[9].find("effective_top_k/mean"), nullptr);
  for (const char* key : {"effective_top_k/mean", "routing_overlap/mean", "layer/1/effective_top_k",
                          "load_entropy/mean", "dead_share/mean", "gemm_share", "sibling_cosine/mean"}) {
    EXPECT_NE(lines[10].find(key), nullptr) << key;
  }
  EXPECT_GT(lines[10].at("sibling_cosine/mean").as_double(), 0.9);
  EXPECT_EQ(lines[12].find("sibling_cosine/mean"), nullptr) << "all weights are read only now and then";
}

TEST(GrowInMidRunByRecipe, IsTheSameGrowthSpelledOut) {
  const TempDir dir;
  auto named = growing_run(dir, R"([{"at_step": 6, "experts": "6", "score_batches": 2, "recipe": "paper",
                                     "max_duplicates": 1}])");
  (void)train(named);
  auto spelled = growing_run(dir, R"([{"at_step": 6, "experts": "6", "score_batches": 2, "select": "greedy",
      "metric": "gradient_squared", "layer_selection": "both_average", "max_duplicates": 1, "expert_init": "copy",
      "router_init": "bias_only:delta=0.001", "optimizer_state": "reset"}])");
  spelled.out = dir / "spelled";
  (void)train(spelled);
  EXPECT_EQ(testing::exact_losses(named.out), testing::exact_losses(spelled.out));
  const auto plan = [](const fs::path& run) { return plan::GrowthPlan::read(growth_path(run, 6) / "plan.toml"); };
  EXPECT_EQ(plan(named.out).to_json(), plan(spelled.out).to_json());
  EXPECT_EQ(plan(named.out).optimizer_state.name, "reset");

  auto bad = growing_run(dir, R"([{"at_step": 6, "experts": "6", "recipe": "papers"}])");
  bad.out = dir / "bad";
  expect_error(ErrorCode::kUsage, {"papers", "paper"}, [&] { (void)train(bad); });
}

// The scores of an expansion are those that `score` gives the checkpoint before, over the windows before.
TEST(GrowInMidRunScores, AreThoseOfTheCheckpointOverTheLastBatches) {
  const TempDir dir;
  for (const bool reset : {false, true}) {
    auto o = growing_run(dir, R"([{"at_step": 4, "experts": "2x", "score_batches": 4}])");
    o.data_train = {testing::write_tokens(dir / (reset ? "apart" : "across"), 32, 400, 11)};
    o.seed = 3;
    o.reset_attention = reset;
    o.out = dir / (reset ? "run-apart" : "run-across");
    o.stop_at = 5;
    (void)train(o);
    const auto found = plan::Scores::read(growth_path(o.out, 4) / "scores.json");
    const auto wanted = score::score_model(
        families::open_model(checkpoint_path(o.out, 4)), {data::TokenFile::open(o.data_train[0])},
        {.batches = 4, .batch_tokens = 128, .sequence_length = 16, .reset_attention = reset, .seed = 3});
    EXPECT_EQ(found.reset_attention, reset);
    for (const auto& [name, metric] : wanted.metrics) {
      for (const auto& [layer, values] : metric.fc1.sum) {
        const double largest = *std::ranges::max_element(values);
        for (size_t e = 0; e < values.size(); ++e) {
          EXPECT_NEAR(found.metrics.at(name).fc1.sum.at(layer)[e], values[e], 1e-3 * largest) << name;
        }
      }
    }
  }
}

TEST(GrowInMidRunScores, WantTheirBatchesInARunThatGoesOn) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.stop_at = 4;
  o.out = dir / "trunk";
  o.model_path = train(o).checkpoint;  // 32 windows
  o.start = "continue";
  o.stop_at = 6;
  o.batch_tokens = 1280;  // of 80
  const auto grows = [&](const char* growth) {
    o.growth = stages(growth);
    o.out = dir / "run";
    (void)train(o);
  };
  expect_error(ErrorCode::kUsage, {"growth 1", "there are only 1 batches of 1280 tokens", "wanted 2", "score_batches"},
               [&] { grows(R"([{"at_step": 5, "experts": "2x", "score_batches": 2}])"); });
  expect_error(ErrorCode::kUsage, {"growth 1", "there are only 0 batches"},
               [&] { grows(R"([{"at_step": 4, "experts": "2x", "score_batches": 1}])"); });
  expect_error(ErrorCode::kUsage, {"growth 2", "there are only 1 batches"}, [&] {
    grows(R"([{"at_step": 4, "select": "uniform"}, {"at_step": 5, "experts": "2x", "score_batches": 2}])");
  });
  EXPECT_FALSE(fs::exists(o.out));
  grows(R"([{"at_step": 5, "experts": "2x", "score_batches": 1}])");
  o.batch_tokens = 32;  // many small batches behind a few steps
  o.out = dir / "small";
  o.growth = stages(R"([{"at_step": 5, "experts": "2x", "score_batches": 17}])");
  (void)train(o);
}

TEST(GrowInMidRunWithHandover, KeepsTheFunctionOverTheGrowth) {
  const TempDir dir;
  auto o = growing_run(dir, R"([{"at_step": 10, "experts": "3x"}])");
  o.handover = "release";
  o.handover_steps = 4;
  (void)train(o);
  const auto grown = events(o.out, "growth").at(0);
  const double before = grown.at("validation_before").at("val").as_double();
  EXPECT_NEAR(grown.at("validation_after").at("val").as_double(), before, 2e-6);
  EXPECT_GT(std::abs(grown.at("validation_plain").at("val").as_double() - before), 1e-4) << "plain top-K takes twins";

  const auto lines = testing::metrics(o.out, "loss");
  EXPECT_EQ(lines[10].at("lineage_share").as_double(), 1.0);
  EXPECT_EQ(lines[11].at("lineage_share").as_double(), 0.75);
  EXPECT_EQ(lines[14].find("lineage_share"), nullptr) << "let go";
  EXPECT_EQ(lines[10].at("effective_top_k/mean").as_double(), 2.0);
  EXPECT_LT(lines[15].at("effective_top_k/mean").as_double(), 2.0);
}

TEST(GrowInMidRunWithHandover, LeavesDormantCopiesAsleep) {
  const TempDir dir;
  auto o = growing_run(dir, R"([{"at_step": 10, "experts": "2x", "lr": 1e-12}])");
  o.handover = "dormant";
  o.balance_rate = 1e-4;
  (void)train(o);
  const auto grown = events(o.out, "growth").at(0);
  EXPECT_NEAR(grown.at("validation_after").at("val").as_double(), grown.at("validation_before").at("val").as_double(),
              2e-6);
  const auto lines = testing::metrics(o.out, "loss");
  EXPECT_EQ(lines[10].at("dead_share/mean").as_double(), 0.5) << "no copy has a token yet";
}

TEST(GrowInMidRunWithHandover, NotesTheShareInTheCheckpoint) {
  const TempDir dir;
  auto o = growing_run(dir, R"([{"at_step": 10, "experts": "2x"}])");
  o.handover = "release";
  o.handover_steps = 8;
  o.checkpoint_every = 4;
  o.keep_last = 9;
  (void)train(o);
  const auto share = [&](int64_t step) {
    const auto lineage = plan::read_lineage(checkpoint_path(o.out, step));
    return lineage ? plan::lineage_share(*lineage) : -1.0;
  };
  EXPECT_EQ(share(8), -1.0);
  EXPECT_EQ(share(12), 0.75);
  EXPECT_EQ(share(16), 0.25);
  EXPECT_EQ(share(20), 0.0);
  const auto note = plan::noted_lineage_share(*plan::read_lineage(checkpoint_path(o.out, 12)));
  EXPECT_EQ(note.seed, o.seed);
  EXPECT_EQ(note.steps, 8);
}

TEST(GrowInMidRunWithHandover, LeavesTheSameLineageHoweverTheRunIsCut) {
  const TempDir dir;
  auto o = growing_run(dir, R"([{"at_step": 4, "experts": "6", "select": "uniform"},
                                {"at_step": 12, "experts": "2x", "select": "uniform"}])");
  o.handover = "release";
  o.handover_steps = 3;
  const auto last = train(o).checkpoint;
  const auto lineage = plan::read_lineage(last);
  EXPECT_EQ(lineage->at("steps").items().at(0).at("released_at").as_int(), 7);
  EXPECT_EQ(lineage->at("steps").items().at(1).at("released_at").as_int(), 15);

  auto parts = o;
  parts.out = dir / "parts";
  for (const int64_t stop : {6, 7, 10, 14, 16, 0}) {
    parts.stop_at = stop;
    const auto checkpoint = train(parts).checkpoint;
    parts.resume = true;
    const auto over = plan::released_at(*plan::read_lineage(checkpoint));
    EXPECT_EQ(over, stop == 6 || stop == 14 ? std::nullopt : std::optional<int64_t>(stop == 7 || stop == 10 ? 7 : 15));
  }
  EXPECT_EQ(read_file(checkpoint_path(parts.out, 20) / "coppice.json"), read_file(last / "coppice.json"));
}

// A run that grew at step 6 and is at step 11 in the middle of its release.
struct HalfReleased {
  TrainOptions options;  // of the whole run
  fs::path checkpoint;
};

HalfReleased half_released(const TempDir& dir) {
  auto o = growing_run(dir, R"([{"at_step": 6, "experts": "2x", "select": "uniform"}])");
  o.seed = 7;
  o.handover = "release";
  o.handover_steps = 10;
  auto half = o;
  half.stop_at = 11;
  half.out = dir / "half";
  return {o, train(half).checkpoint};
}

TEST(GrowInMidRunWithHandover, GoesOnFromTheShareOfTheCheckpoint) {
  const TempDir dir;
  const auto [o, checkpoint] = half_released(dir);
  (void)train(o);
  auto rest = o;
  rest.growth = Json();
  rest.model_path = checkpoint;
  rest.start = "continue";
  rest.out = dir / "rest";
  (void)train(rest);
  const auto lines = testing::metrics(rest.out, "loss");
  EXPECT_EQ(lines.at(0).at("step").as_int(), 12);
  EXPECT_EQ(lines.at(0).at("lineage_share").as_double(), 0.5);
  const auto whole = testing::exact_losses(o.out);
  EXPECT_EQ(testing::exact_losses(rest.out), (std::vector<std::string>(whole.begin() + 11, whole.end())));
  EXPECT_EQ(testing::tensor_files(checkpoint_path(rest.out, 20)), testing::tensor_files(checkpoint_path(o.out, 20)));

  // From step 0, and with another seed of the data: the tokens are still drawn by the seed of the handover.
  rest.start = "fresh";
  rest.seed = 8;
  rest.warmup = 0;
  rest.out = dir / "fresh";
  rest.stop_at = 2;
  const auto fresh = train(rest).checkpoint;
  EXPECT_EQ(testing::metrics(rest.out, "loss").at(0).at("lineage_share").as_double(), 0.5);
  const auto note = plan::noted_lineage_share(*plan::read_lineage(fresh));
  EXPECT_EQ(note.seed, 7u);
  EXPECT_DOUBLE_EQ(note.share, 0.3);
  rest.stop_at = 0;
  rest.resume = true;
  (void)train(rest);
  EXPECT_EQ(testing::metrics(rest.out, "loss").at(4).at("lineage_share").as_double(), 0.1);
  EXPECT_EQ(testing::metrics(rest.out, "loss").at(5).find("lineage_share"), nullptr);
}

TEST(GrowInMidRunWithHandover, DoesNotBeginAgainOnceItIsOver) {
  const TempDir dir;
  auto o = growing_run(dir, R"([{"at_step": 4, "experts": "2x", "select": "uniform"}])");
  o.handover = "release";
  o.handover_steps = 3;
  o.stop_at = 10;
  const auto trunk = train(o).checkpoint;
  EXPECT_EQ(plan::released_at(*plan::read_lineage(trunk)), 7);
  o.model_path = trunk;
  o.start = "continue";
  o.out = dir / "rest";
  o.stop_at = 0;
  o.growth = Json();
  expect_error(ErrorCode::kUsage,
               {"'release'", "lineage-unique routing was complete by step 7", "handover.policy none"},
               [&] { (void)train(o); });
  EXPECT_FALSE(fs::exists(o.out));
  o.growth = stages(R"([{"at_step": 12, "experts": "2x", "select": "uniform"}])");
  o.stop_at = 14;
  (void)train(o);
  const auto lines = testing::metrics(o.out, "loss");
  EXPECT_EQ(lines.at(0).find("lineage_share"), nullptr);
  EXPECT_NE(lines.at(2).find("lineage_share"), nullptr) << "the expansion that this run makes has its own handover";
}

TEST(GrowInMidRunWithHandover, RefusesAnotherThanThatOfTheCheckpoint) {
  const TempDir dir;
  const auto [o, checkpoint] = half_released(dir);
  auto rest = o;
  rest.growth = Json();
  rest.model_path = checkpoint;
  rest.out = dir / "rest";
  const auto refused = [&](const char* policy, int64_t steps, std::initializer_list<const char*> said) {
    for (const char* start : {"fresh", "continue"}) {
      rest.start = start;
      rest.handover = policy;
      rest.handover_steps = steps;
      expect_error(ErrorCode::kUsage, said, [&] { (void)train(rest); });
    }
  };
  refused("none", 0, {"'none'", "0.5", "'release' with handover.steps 10"});
  refused("dormant", 5, {"'dormant'", "'release' with handover.steps 10"});
  refused("keep", 0, {"'keep'", "0.5", "'release'"});
  refused("release", 12, {"handover.steps: 12", "10 steps", "0.5"});

  // What coppice 0.1.0 wrote has neither steps nor seed.
  Json lineage = Json::read(checkpoint / "coppice.json");
  lineage.erase("share_steps");
  lineage.erase("seed");
  io::write_file_atomically(checkpoint / "coppice.json", lineage.dump());
  refused("none", 0, {"'none'", "0.5", "as in the run before"});
  refused("release", 7, {"handover.steps: 7", "0.5"});
  rest.handover_steps = 10;
  (void)train(rest);
  EXPECT_EQ(testing::metrics(rest.out, "loss").at(0).at("lineage_share").as_double(), 0.5);
}

TEST(GrowOnDiskWithHandover, BeginsWithTheRun) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.stop_at = 10;
  o.out = dir / "trunk";
  const auto trunk = train(o).checkpoint;
  const auto model = families::open_model(trunk);
  plan::GrowthOptions growth;
  growth.router_init = methods::MethodChoice{"copy", {}};
  grow::expand(model, plan::make_plan(model.config, growth, nullptr), {.out = dir / "grown", .threads = 1});
  o.model_path = dir / "grown";
  o.start = "continue";
  o.stop_at = 0;
  o.out = dir / "run";
  o.handover = "release";
  o.handover_steps = 5;
  (void)train(o);
  const auto lines = testing::metrics(o.out, "loss");
  EXPECT_EQ(lines.front().at("step").as_int(), 11);
  EXPECT_EQ(lines.front().at("lineage_share").as_double(), 1.0);
  EXPECT_EQ(lines.front().at("effective_top_k/mean").as_double(), 2.0);
  EXPECT_EQ(lines[5].find("lineage_share"), nullptr);

  // An expansion of this run would drop the lineage of that on disk.
  o.growth = stages(R"([{"at_step": 14, "experts": "2x", "select": "uniform"}])");
  o.out = dir / "early";
  expect_error(ErrorCode::kUsage, {"growth at step 14", "handover"}, [&] { (void)train(o); });
  o.handover = "keep";
  o.handover_steps = 0;
  expect_error(ErrorCode::kUsage, {"growth at step 14", "'keep'"}, [&] { (void)train(o); });
  o.handover = "release";
  o.handover_steps = 4;
  (void)train(o);
}

TEST(GrowOnDiskWithHandover, ReportsTheLossOfTheRoutingInForce) {
  const TempDir dir;
  auto o = growing_run(dir, R"([{"at_step": 10, "experts": "3x", "select": "uniform"}])");
  o.handover = "keep";
  o.stop_at = 10;
  const auto before = train(o);  // a checkpoint of 4 experts, then the expansion
  o.stop_at = 0;
  o.resume = true;
  (void)train(o);
  const auto grown = events(o.out, "growth").at(0);
  EXPECT_NEAR(grown.at("validation_before").at("val").as_double(), before.validation_loss.at("val"), 1e-7);
}

TEST(GrowInMidRunChecks, RefuseABadStageBeforeTheFirstStep) {
  const TempDir dir;
  const auto refused = [&](const std::string& growth, std::initializer_list<const char*> said,
                           const std::function<void(TrainOptions&)>& change = {}) {
    SCOPED_TRACE(growth);
    auto o = growing_run(dir, growth);
    if (change) change(o);
    expect_error(ErrorCode::kUsage, said, [&] { (void)train(o); });
    EXPECT_FALSE(fs::exists(o.out)) << "nothing is written";
  };
  refused(R"([{"at_step": 20}])", {"growth 1", "at_step", "0 to 19"});
  refused(R"([{"at_step": 9, "select": "uniform"}, {"at_step": 9, "select": "uniform"}])", {"growth 2", "10 to 19"});
  refused(R"([{"experts": "2x"}])", {"growth 1", "at_step -1"});
  refused(R"([{"at_step": 5, "expert": "2x"}])", {"growth 1", "'expert'", "experts"});
  refused(R"([{"at_step": 5}])", {"score_batches", "10"});
  refused(R"([{"at_step": 12, "experts": "4"}])", {"growth at step 12", "4"});
  refused(R"([{"at_step": 12, "expert_init": "copi"}])", {"growth at step 12", "copi", "copy"});
  refused(R"([{"at_step": 12, "metric": "grad"}])", {"growth at step 12", "grad"});
  refused(R"([{"at_step": 12, "balance_steps": 3}])", {"balance_rate", "balance_steps 3"});
  refused(R"([{"at_step": 16, "rewarmup": 3}])", {"step 16", "rewarmup", "anneal"});
  refused(R"({"at_step": 12})", {"array of tables"});
  const auto release = [](TrainOptions& o) {
    o.handover = "release";
    o.handover_steps = 6;
  };
  refused(R"([{"at_step": 12, "scale_top_k": true, "select": "uniform"}])", {"growth 1", "handover.policy none"},
          release);
  refused(R"([{"at_step": 10}, {"at_step": 14, "experts": "2x"}])", {"growth 2", "handover.steps"}, release);
  refused("null", {"without an expansion"}, release);
  refused(R"([{"at_step": 12}])", {"handover.steps"}, [](TrainOptions& o) { o.handover = "release"; });
  refused(R"([{"at_step": 12}])", {"'relese'", "release"}, [](TrainOptions& o) { o.handover = "relese"; });
  refused(R"([{"at_step": 12}])", {"dormant", "loss_free"}, [](TrainOptions& o) {
    o.handover = "dormant";
    o.balance = "aux";
  });
}

}  // namespace
}  // namespace coppice::train
