#include "coppice/plan/utility.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"

namespace coppice::plan {
namespace {

using ::testing::ElementsAre;
using testing::example_config;
using testing::example_scores;
using testing::expect_error;

const UtilityInputs kInputs{.weight_sq = 9,
                            .grad_sq = 16,
                            .weight_grad = -7,
                            .batch_grad_sq = 100,
                            .second_moment_sq = 4,
                            .batches = 10,
                            .load = 0.25,
                            .gate_mass = 3,
                            .output_error = 0.5};

TEST(UtilityMetrics, FollowTheirFormulas) {
  const std::map<std::string_view, double> wanted{{"weight_norm", 3},
                                                  {"weight_grad_product", 12},
                                                  {"gradient_squared", 16},
                                                  {"gradient_norm", 4},
                                                  {"batch_fisher", 10},
                                                  {"taylor", 7},
                                                  {"approx_fisher", 16 / (2 + 1e-8)},
                                                  {"load", 0.25},
                                                  {"gate_mass", 3},
                                                  {"output_error", 0.5}};
  EXPECT_EQ(utility_metrics().size(), wanted.size());
  for (const UtilityMetric& metric : utility_metrics()) {
    ASSERT_TRUE(wanted.contains(metric.name)) << metric.name;
    EXPECT_TRUE(metric.available(kInputs)) << metric.name;
    EXPECT_DOUBLE_EQ(metric.value(kInputs), wanted.at(metric.name)) << metric.name;
  }
}

TEST(UtilityMetrics, AreAvailableWhereTheirInputsAre) {
  const UtilityInputs weights_only{.weight_sq = 1};
  for (const UtilityMetric& metric : utility_metrics()) {
    EXPECT_EQ(metric.available(weights_only), metric.name == "weight_norm") << metric.name;
  }
}

TEST(UtilityMetrics, MergeOverRunsOnlyWhereSumsSuffice) {
  const std::set<std::string_view> merging{"weight_norm", "batch_fisher", "load", "gate_mass", "output_error"};
  for (const UtilityMetric& metric : utility_metrics()) {
    EXPECT_EQ(metric.merges, merging.contains(metric.name)) << metric.name;
  }
}

TEST(UtilityMetrics, NamesTheNearest) {
  expect_error(ErrorCode::kUsage, {"'gradient_sqared'", "'gradient_squared'"},
               [] { (void)utility_metric("gradient_sqared"); });
  expect_error(ErrorCode::kUsage, {"'both_maximum'"}, [] { (void)layer_selection("both_maximum"); });
}

// fc1 is a hundred times larger than fc2; without division by the layer's sum it would decide alone.
Scores two_part_scores() {
  Scores scores;
  scores.layers = 4;
  scores.experts = 2;
  scores.metrics["gradient_squared"] = {.fc1 = {.sum = {{3, {300, 100}}}, .sum_sq = {}},
                                        .fc2 = {.sum = {{3, {1, 4}}}, .sum_sq = {}}};
  return scores;
}

TEST(LayerScores, CombineThePartsAfterEachIsDividedByItsSum) {
  const Scores scores = two_part_scores();
  const auto combined = [&](std::string_view selection) {
    return layer_scores(scores, "gradient_squared", selection, 3);
  };
  EXPECT_THAT(combined("fc1_only"), ElementsAre(300, 100));
  EXPECT_THAT(combined("fc2_only"), ElementsAre(1, 4));
  // Shares .75, .25 and .2, .8.
  using ::testing::DoubleNear;
  EXPECT_THAT(combined("both_average"), ElementsAre(DoubleNear(0.475, 1e-15), DoubleNear(0.525, 1e-15)));
  EXPECT_THAT(combined("both_product"), ElementsAre(DoubleNear(0.15, 1e-15), DoubleNear(0.2, 1e-15)));
  EXPECT_THAT(combined("both_max"), ElementsAre(DoubleNear(0.75, 1e-15), DoubleNear(0.8, 1e-15)));
  EXPECT_THAT(combined("both_min"), ElementsAre(DoubleNear(0.2, 1e-15), DoubleNear(0.25, 1e-15)));
}

TEST(LayerScores, StayFiniteForZeroAndHugeParts) {
  Scores scores = two_part_scores();
  auto& metric = scores.metrics["gradient_squared"];
  metric.fc1.sum[3] = {0, 0};
  metric.fc2.sum[3] = {1e308, 1e308};
  for (const LayerSelection& selection : layer_selections()) {
    for (const double score : layer_scores(scores, "gradient_squared", selection.name, 3)) {
      EXPECT_TRUE(std::isfinite(score) && score >= 0) << selection.name;
    }
  }
  EXPECT_THAT(layer_scores(scores, "gradient_squared", "both_average", 3), ElementsAre(0.25, 0.25));
}

TEST(LayerScores, SayWhatTheScoresLack) {
  Scores scores = two_part_scores();
  const auto get = [&](std::string_view metric, int64_t layer) {
    return [&, metric, layer] { (void)layer_scores(scores, metric, "both_average", layer); };
  };
  expect_error(ErrorCode::kUsage, {"'load'", "gradient_squared"}, get("load", 3));
  expect_error(ErrorCode::kUsage, {"'lod'", "'load'"}, get("lod", 3));
  expect_error(ErrorCode::kFormat, {"layer 2"}, get("gradient_squared", 2));
  scores.metrics["gradient_squared"].fc2.sum[3] = {1, 4, 5};
  expect_error(ErrorCode::kFormat, {"fc2", "layer 3", "3 values", "wanted 2"}, get("gradient_squared", 3));
  for (const double bad : {std::nan(""), -1.0, std::numeric_limits<double>::infinity()}) {
    scores.metrics["gradient_squared"].fc2.sum[3] = {1, bad};
    expect_error(ErrorCode::kNonFinite, {"fc2", "layer 3", "expert 1"}, get("gradient_squared", 3));
  }
}

TEST(ScoresJson, RoundTripsExactly) {
  Scores scores = example_scores(example_config("mixtral"));
  scores.metrics["gradient_squared"].fc1.sum[1][2] = 1.0 / 3.0;
  scores.metrics["batch_fisher"] = scores.metrics["gradient_squared"];
  scores.metrics["batch_fisher"].fc2.sum_sq = scores.metrics["batch_fisher"].fc2.sum;
  const Scores again = Scores::from_json(Json::parse(scores.to_json().dump(2), "s"), "s");
  EXPECT_EQ(again.metrics, scores.metrics);
  EXPECT_EQ(again.model_digest, scores.model_digest);
  EXPECT_EQ(again.model_type, scores.model_type);
  EXPECT_EQ(again.tokens_digest, scores.tokens_digest);
  EXPECT_EQ(again.tokens_seen, scores.tokens_seen);
  EXPECT_EQ(again.batches, scores.batches);
  EXPECT_EQ(again.to_json(), scores.to_json());
}

TEST(ScoresJson, AreNotWrittenWithNumbersThatAreNotFinite) {
  const Scores good = example_scores(example_config("mixtral"));
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    Scores scores = good;
    scores.metrics["gradient_squared"].fc2.sum[2][5] = bad;
    expect_error(ErrorCode::kNonFinite, {"gradient_squared", "fc2", "layer 2, expert 5"},
                 [&] { (void)scores.to_json(); });
  }
}

// Each edit damages a good file; the error must name the file and the place.
TEST(ScoresJson, RefusesDamagedFiles) {
  const Json good = example_scores(example_config("mixtral")).to_json();
  using Edit = void (*)(Json&);
  struct Damage {
    const char* place;
    ErrorCode code;
    Edit edit;
  };
  const auto f = ErrorCode::kFormat;
  const Damage damages[] = {
      {"coppice_scores", f, [](Json& j) { j.erase("coppice_scores"); }},
      {"coppice_scores", f, [](Json& j) { j["coppice_scores"] = Json(2); }},
      {"model", f, [](Json& j) { j["model"] = Json(3); }},
      {"digest", f, [](Json& j) { j["model"]["digest"] = Json(3); }},
      {"experts", f, [](Json& j) { j["model"]["experts"] = Json(0); }},
      {"experts", f, [](Json& j) { j["model"]["experts"] = Json(8.5); }},
      {"experts", f, [](Json& j) { j["model"]["experts"] = Json(1e18); }},
      {"layers", f, [](Json& j) { j["model"]["layers"] = Json(-3); }},
      {"seen", f, [](Json& j) { j["tokens"]["seen"] = Json(-1); }},
      {"batches", f, [](Json& j) { j["tokens"].erase("batches"); }},
      {"batches", f, [](Json& j) { j["tokens"]["batches"] = Json(0); }},
      {"batches", f, [](Json& j) { j["tokens"]["batches"] = Json(int64_t{1} << 62); }},
      {"seen", f, [](Json& j) { j["tokens"]["seen"] = Json(999); }},
      {"runs", f, [](Json& j) { j["runs"] = Json::array({Json(1)}); }},
      {"metrics", f, [](Json& j) { j["metrics"] = Json::object(); }},
      {"sum", f, [](Json& j) { j["metrics"]["gradient_squared"]["fc1"]["sum"] = Json::object(); }},
      {"metrics", f, [](Json& j) { j["metrics"] = Json::array(); }},
      {"fc2", f, [](Json& j) { j["metrics"]["gradient_squared"].erase("fc2"); }},
      {"sum", f, [](Json& j) { j["metrics"]["gradient_squared"]["fc1"].erase("sum"); }},
      {"'7'", f, [](Json& j) { j["metrics"]["gradient_squared"]["fc1"]["sum"]["7"] = Json::array(); }},
      {"'01'", f, [](Json& j) { j["metrics"]["gradient_squared"]["fc1"]["sum"]["01"] = Json::array(); }},
      {"'-1'", f, [](Json& j) { j["metrics"]["gradient_squared"]["fc1"]["sum"]["-1"] = Json::array(); }},
      {"'x'", f, [](Json& j) { j["metrics"]["gradient_squared"]["fc1"]["sum"]["x"] = Json::array(); }},
      {"'1'", f, [](Json& j) { j["metrics"]["gradient_squared"]["fc1"]["sum"]["1"] = Json(); }},
      {"has 9 values", f, [](Json& j) { j["metrics"]["gradient_squared"]["fc1"]["sum"]["1"].push_back(Json(1.0)); }},
      {"sum_sq", f, [](Json& j) { j["metrics"]["gradient_squared"]["fc1"]["sum_sq"] = Json(1); }},
      {"expert 0", f,
       [](Json& j) { j["metrics"]["gradient_squared"]["fc1"]["sum"]["1"] = Json::array(Json::Array(8, Json("1"))); }},
      {"layer 1, expert 0", ErrorCode::kNonFinite,
       [](Json& j) {
         j["metrics"]["gradient_squared"]["fc1"]["sum"]["1"] = Json::array(Json::Array(8, Json(std::nan(""))));
       }},
      {"layer 1, expert 0", ErrorCode::kNonFinite,
       [](Json& j) { j["metrics"]["gradient_squared"]["fc1"]["sum"]["1"] = Json::array(Json::Array(8, Json(-0.5))); }},
  };
  for (const Damage& damage : damages) {
    SCOPED_TRACE(damage.place);
    Json bad = good;
    damage.edit(bad);
    expect_error(damage.code, {"scores.json", damage.place}, [&] { (void)Scores::from_json(bad, "scores.json"); });
  }
  EXPECT_NO_THROW(Scores::from_json(good, "scores.json"));
  expect_error(f, {"scores.json"}, [] { (void)Scores::from_json(Json(1), "scores.json"); });
}

}  // namespace
}  // namespace coppice::plan
