// Several ranks score and cluster as one does.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <memory>

#include "coppice/score/partial_scores.h"
#include "coppice/score/router_rows.h"
#include "coppice/score/score.h"
#include "tests/dist/thread_ranks.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"
#include "tests/testing/token_files.h"

namespace coppice::score {
namespace {

namespace fs = std::filesystem;
using testing::borrowed;
using testing::run_ranks;
using testing::TempDir;

struct Ranks {
  int64_t size, expert_parallel;
};

void expect_close(const plan::Scores& found, const plan::Scores& wanted, double tolerance) {
  ASSERT_EQ(found.metrics.size(), wanted.metrics.size());
  const auto near = [&](const auto& a, const auto& b, const std::string& what) {
    ASSERT_EQ(a.size(), b.size()) << what;
    for (const auto& [layer, wanted_of_layer] : b) {
      const auto& of_layer = a.at(layer);
      ASSERT_EQ(of_layer.size(), wanted_of_layer.size()) << what;
      double largest = 0;
      for (const double x : wanted_of_layer) largest = std::max(largest, std::abs(x));
      for (size_t e = 0; e < of_layer.size(); ++e)
        EXPECT_NEAR(of_layer[e], wanted_of_layer[e], tolerance * largest) << what << " of expert " << e;
    }
  };
  for (const auto& [name, metric] : wanted.metrics) {
    const auto& same = found.metrics.at(name);
    near(same.fc1.sum, metric.fc1.sum, name);
    near(same.fc2.sum, metric.fc2.sum, name);
    near(same.fc1.sum_sq, metric.fc1.sum_sq, name);
    near(same.fc2.sum_sq, metric.fc2.sum_sq, name);
  }
  for (const auto& [layer, value] : wanted.gate_concentration.sum)
    EXPECT_NEAR(found.gate_concentration.sum.at(layer), value, 1e-6 * std::abs(value));
  EXPECT_EQ(found.tokens_seen, wanted.tokens_seen);
}

// 7 windows a batch: shares of ranks differ, and with 8 ranks one has none.
TEST(ScoreOnRanks, GivesWhatOneRankGives) {
  at::set_num_threads(1);
  for (const std::string_view family : {"glm4_moe", "gpt_oss"}) {
    const TempDir dir;
    const auto model = families::open_model(testing::tiny_model(
        dir / "m", family, {.sizes = {.vocab_size = 64, .num_layers = 3, .num_experts = 6}, .std = 0.2}));
    const std::vector<data::TokenFile> tokens{data::TokenFile::open(testing::write_tokens(dir / "t", 64, 10, 100))};
    for (const bool on_disk : {false, true}) {
      ScoreSettings settings{.batches = 3, .batch_tokens = 112, .sequence_length = 16, .seed = 4};
      if (on_disk) settings.max_memory_bytes = 1;  // a layer at a time
      if (on_disk) settings.out = dir / "scores.json";
      const auto wanted = score_model(model, tokens, settings);
      for (const auto& [size, expert_parallel] : std::vector<Ranks>{{2, 1}, {2, 2}, {4, 2}, {8, 4}}) {
        SCOPED_TRACE(cat(family, ", ", size, " ranks, expert groups of ", expert_parallel));
        run_ranks(size,
                  [&](dist::World& world) {
                    at::set_num_threads(1);
                    auto of_rank = settings;
                    of_rank.world = borrowed(world);
                    expect_close(score_model(model, tokens, of_rank), wanted, 1e-5);
                  },
                  {.expert_parallel = expert_parallel, .timeout = std::chrono::seconds(60)});
      }
      for (const auto& entry : std::filesystem::directory_iterator(dir.path()))
        EXPECT_EQ(entry.path().filename().string().find(".rank-"), std::string::npos) << entry.path();
    }
  }
}

// Rank 1 was killed before it saved the layer that rank 0 had saved already.
TEST(ScoreOnRanks, ContinueAfterTheLastLayerThatAllHaveSaved) {
  const TempDir dir;
  const auto model = families::open_model(testing::tiny_model(dir / "m", "glm4_moe", {.sizes = {.vocab_size = 64}}));
  plan::Scores begun{.model_digest = model.digest(), .layers = 5, .experts = 4};
  begun.tokens_seen = begun.batch_tokens = 16, begun.batches = 1;
  const auto scores_of = [&](int64_t left) {
    plan::Scores scores = begun;
    for (int64_t layer = left; layer < 5; ++layer) {
      scores.metrics["load"].fc1.sum[layer] = std::vector<double>(4, 1.0 / static_cast<double>(layer));
      scores.metrics["load"].fc2.sum[layer] = scores.metrics["load"].fc1.sum[layer];
    }
    return scores;
  };
  const auto settings_of = [&](dist::World& world) {
    return ScoreSettings{.out = dir / "s.json", .resume = true, .world = borrowed(world)};
  };
  run_ranks(2, [&](dist::World& world) {
    PartialScores partial(model, begun, settings_of(world));
    EXPECT_EQ(partial.layers_left(), 5);
    partial.save(scores_of(4), 4);
    const fs::path state = partial.directory() / "state.json", before = dir / cat("state-", world.rank());
    fs::copy_file(state, before);
    partial.save(scores_of(3), 3);
    if (world.rank() == 1) fs::copy_file(before, state, fs::copy_options::overwrite_existing);
  });
  run_ranks(2, [&](dist::World& world) {
    PartialScores partial(model, begun, settings_of(world));
    EXPECT_EQ(partial.layers_left(), 4);
    ASSERT_TRUE(partial.scores());
    EXPECT_EQ(partial.scores()->to_json().dump(), scores_of(4).to_json().dump());
  });
  // Another number of ranks is other work, and without a resume it removes what these left, but nothing else.
  fs::create_directories(dir / ".s.json.rank-x.layers.tmp-work");
  fs::create_directories(dir / ".s.json.rank-7.layers.tmp-work" / "mine");
  fs::create_directories(dir / ".other.json.rank-7.layers.tmp-work");
  {
    const PartialScores alone(model, begun, {.out = dir / "s.json"});
  }
  EXPECT_FALSE(fs::exists(dir / ".s.json.rank-0.layers.tmp-work"));
  EXPECT_FALSE(fs::exists(dir / ".s.json.rank-1.layers.tmp-work"));
  for (const char* name : {".s.json.rank-x.layers.tmp-work", ".s.json.rank-7.layers.tmp-work/mine",
                           ".other.json.rank-7.layers.tmp-work"}) {
    EXPECT_TRUE(fs::exists(dir / name)) << name;
  }
}

TEST(ClusterOnRanks, GivesWhatOneRankGives) {
  at::set_num_threads(1);
  const TempDir dir;
  const auto model = families::open_model(testing::tiny_model(dir / "m", "llama", {.sizes = {.vocab_size = 64}}));
  const std::vector<data::TokenFile> tokens{data::TokenFile::open(testing::write_tokens(dir / "t", 64, 10, 100))};
  RouterRowSettings settings{.clusters = 3, .tokens = 80, .sequence_length = 16, .reset_attention = true, .seed = 2};
  const auto wanted = cluster_inputs(model, tokens, settings);
  for (const int64_t ranks : {2, 6}) {  // 5 windows
    run_ranks(ranks, [&](dist::World& world) {
      at::set_num_threads(1);
      auto of_rank = settings;
      of_rank.world = borrowed(world);
      const auto found = cluster_inputs(model, tokens, of_rank);
      ASSERT_EQ(found.size(), wanted.size());
      for (size_t layer = 0; layer < found.size(); ++layer) {
        EXPECT_EQ(found[layer].clusters.sizes, wanted[layer].clusters.sizes);
        EXPECT_TRUE(found[layer].row_GD.allclose(wanted[layer].row_GD, 1e-4, 1e-5));
      }
    });
  }
}

}  // namespace
}  // namespace coppice::score
