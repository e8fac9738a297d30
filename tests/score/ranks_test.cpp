// Several ranks score and cluster as one does.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "coppice/score/router_rows.h"
#include "coppice/score/score.h"
#include "tests/dist/thread_ranks.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"
#include "tests/testing/token_files.h"

namespace coppice::score {
namespace {

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

TEST(ScoreOnRanks, DoesNotResume) {
  const TempDir dir;
  const auto model = families::open_model(testing::tiny_model(dir / "m", "glm4_moe", {.sizes = {.vocab_size = 64}}));
  const std::vector<data::TokenFile> tokens{data::TokenFile::open(testing::write_tokens(dir / "t", 64, 10, 100))};
  run_ranks(2, [&](dist::World& world) {
    testing::expect_error(ErrorCode::kUsage, {"resume: given to 2 ranks"}, [&] {
      (void)score_model(model, tokens,
                        {.batches = 1,
                         .batch_tokens = 32,
                         .sequence_length = 16,
                         .out = dir / "s.json",
                         .resume = true,
                         .world = borrowed(world)});
    });
  });
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
