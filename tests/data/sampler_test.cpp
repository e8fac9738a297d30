#include "coppice/data/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::data {
namespace {

using coppice::testing::expect_error;
using coppice::testing::TempDir;

/// A set whose token i is i, so that a window shows where it is from.
TokenFile counting_file(const std::filesystem::path& prefix, int32_t tokens) {
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 0);
  TokenFileWriter writer(prefix, tokens);
  writer.add_document(ids);
  writer.finish({});
  return TokenFile::open(prefix);
}

class SamplerTest : public ::testing::Test {
 protected:
  TokenFile file(int32_t tokens) { return counting_file(dir_ / ("set" + std::to_string(count_++)), tokens); }

 private:
  TempDir dir_;
  int count_ = 0;
};

TEST_F(SamplerTest, VisitsEveryWindowOnceAnEpoch) {
  for (const int32_t windows : {1, 2, 3, 4, 5, 16, 17, 100, 1000}) {
    const Sampler sampler({file(windows * 8 + 1)}, {}, 8, 3);
    ASSERT_EQ(sampler.windows_per_epoch(), static_cast<uint64_t>(windows));
    for (uint64_t epoch = 0; epoch < 3; ++epoch) {
      std::set<uint64_t> begins;
      for (uint64_t i = 0; i < sampler.windows_per_epoch(); ++i) {
        const auto w = sampler.window(epoch * sampler.windows_per_epoch() + i);
        EXPECT_EQ(w.begin % 8, 0u);
        begins.insert(w.begin);
      }
      EXPECT_EQ(begins.size(), static_cast<size_t>(windows));
      EXPECT_LT(*begins.rbegin(), static_cast<uint64_t>(windows) * 8);
    }
  }
}

TEST_F(SamplerTest, ShufflesAnewEachEpochAndForEachSeed) {
  const auto source = file(801);
  const Sampler a({source}, {}, 8, 1), b({source}, {}, 8, 2);
  int same_epoch = 0, same_seed = 0, in_place = 0, neighbours = 0;
  for (uint64_t i = 0; i < 100; ++i) {
    same_epoch += a.window(i).begin == a.window(100 + i).begin ? 1 : 0;
    same_seed += a.window(i).begin == b.window(i).begin ? 1 : 0;
    in_place += a.window(i).begin == 8 * i ? 1 : 0;
    neighbours += a.window(i + 1).begin == a.window(i).begin + 8 ? 1 : 0;
  }
  // One match in a hundred is expected of a random order; ten have a chance below 1e-6.
  EXPECT_LT(same_epoch, 10);
  EXPECT_LT(same_seed, 10);
  EXPECT_LT(in_place, 10);
  EXPECT_LT(neighbours, 10);
}

TEST_F(SamplerTest, IsAPureFunctionOfSeedAndSample) {
  const std::vector<TokenFile> sources{file(500), file(700)};
  const Sampler a(sources, {1, 2}, 8, 7), b(sources, {1, 2}, 8, 7);
  for (uint64_t i = 200; i-- > 0;) {
    EXPECT_EQ(a.window(i).source, b.window(i).source);
    EXPECT_EQ(a.window(i).begin, b.window(i).begin);
  }
}

TEST_F(SamplerTest, TargetsAreTheNextTokens) {
  const Sampler sampler({file(105)}, {}, 8, 0);
  std::vector<int64_t> tokens(8), targets(8);
  for (uint64_t i = 0; i < sampler.windows_per_epoch(); ++i) {
    sampler.read(i, tokens, targets);
    for (size_t t = 0; t < 8; ++t) {
      EXPECT_EQ(tokens[t], static_cast<int64_t>(sampler.window(i).begin + t));
      EXPECT_EQ(targets[t], tokens[t] + 1);
    }
  }
}

TEST_F(SamplerTest, GivesTheStartOfEachTokensDocument) {
  TempDir dir;
  TokenFileWriter writer(dir / "documents", 10);
  const std::vector<size_t> lengths{3, 1, 20, 8, 2, 7, 1};
  std::vector<uint64_t> start_of;  // of each token
  for (const size_t length : lengths) {
    start_of.insert(start_of.end(), length, start_of.size());
    writer.add_document(std::vector<int32_t>(length, 1));
  }
  writer.finish({});
  const Sampler sampler({TokenFile::open(dir / "documents")}, {}, 8, 0);
  std::vector<int64_t> starts(8);
  for (uint64_t i = 0; i < sampler.windows_per_epoch(); ++i) {
    sampler.document_starts(i, starts);
    const uint64_t begin = sampler.window(i).begin;
    for (size_t t = 0; t < 8; ++t) {
      EXPECT_EQ(starts[t], static_cast<int64_t>(std::max(start_of[begin + t], begin) - begin)) << begin << '+' << t;
    }
  }
}

TEST_F(SamplerTest, GivesEachSourceItsShareAtEveryPrefix) {
  const std::vector<std::vector<double>> cases{{1, 1},
                                               {0.9, 0.1},
                                               {1, 2, 3},
                                               {0.5, 0.25, 0.125, 0.0625, 0.0625},
                                               {1, 1, 1, 1, 1, 1, 1},
                                               {0.97, 0.01, 0.01, 0.01},
                                               {0.3, 0.3, 0.4},
                                               {1e-6, 1, 2}};
  for (const auto& weights : cases) {
    std::vector<TokenFile> sources;
    for (size_t i = 0; i < weights.size(); ++i) sources.push_back(file(100));
    const Sampler sampler(sources, weights, 8, 0);
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<double> counts(weights.size());
    double worst = 0;
    for (uint64_t n = 1; n <= 5000; ++n) {
      ++counts[sampler.window(n - 1).source];
      for (size_t s = 0; s < weights.size(); ++s) {
        worst = std::max(worst, std::abs(counts[s] - static_cast<double>(n) * weights[s] / sum));
      }
    }
    EXPECT_LE(worst, 1.0) << weights.size() << " weights, the first " << weights[0];
  }
}

TEST_F(SamplerTest, KeepsTheSharesOfManySourcesWithinItsBound) {
  std::vector<TokenFile> sources;
  std::vector<double> weights;
  double sum = 0;
  for (int i = 0; i < 40; ++i) {
    sources.push_back(file(20));
    weights.push_back(std::pow(1.3, i % 13) + 0.1 * i);
    sum += weights.back();
  }
  const Sampler sampler(sources, weights, 8, 0);
  std::vector<double> counts(weights.size());
  for (uint64_t n = 1; n <= 20000; ++n) {
    ++counts[sampler.window(n - 1).source];
    for (size_t s = 0; s < weights.size(); ++s)
      ASSERT_LE(std::abs(counts[s] - static_cast<double>(n) * weights[s] / sum), 1.5);
  }
}

TEST_F(SamplerTest, UsesEachWindowOfASmallSourceAsOftenAsAnyOther) {
  const Sampler sampler({file(41), file(4001)}, {1, 1}, 8, 0);  // 5 and 500 windows
  std::map<uint64_t, int> uses;
  for (uint64_t i = 0; i < 1000; ++i) {
    if (const auto w = sampler.window(i); w.source == 0) ++uses[w.begin];
  }
  ASSERT_EQ(uses.size(), 5u);
  for (const auto& [begin, count] : uses) EXPECT_EQ(count, 100) << begin;
}

TEST_F(SamplerTest, WeighsBySizeByDefault) {
  const Sampler sampler({file(81), file(241)}, {}, 8, 0);  // 10 and 30 windows
  std::set<std::pair<size_t, uint64_t>> seen;
  for (uint64_t i = 0; i < sampler.windows_per_epoch(); ++i) {
    const auto w = sampler.window(i);
    seen.emplace(w.source, w.begin);
  }
  EXPECT_EQ(seen.size(), 40u);
}

TEST_F(SamplerTest, AnswersForFarSamples) {
  const Sampler sampler({file(81), file(241)}, {1, 3}, 8, 0);
  for (const uint64_t far : {uint64_t{10'000'000}, uint64_t{1} << 40}) EXPECT_LT(sampler.window(far).begin, 240u);
}

TEST_F(SamplerTest, RejectsWhatCannotBeSampled) {
  expect_error(ErrorCode::kUsage, {"has 8 tokens", "one window, 9"}, [&] { Sampler({file(8)}, {}, 8, 0); });
  expect_error(ErrorCode::kUsage, {"no token file"}, [&] { Sampler({}, {}, 8, 0); });
  expect_error(ErrorCode::kUsage, {"2 weights for 1"}, [&] { Sampler({file(100)}, {1, 2}, 8, 0); });
  expect_error(ErrorCode::kUsage, {"sequence length 0"}, [&] { Sampler({file(100)}, {}, 0, 0); });
  for (const double bad : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    expect_error(ErrorCode::kUsage, {"weight"}, [&] { Sampler({file(100)}, {bad}, 8, 0); });
  }
}

}  // namespace
}  // namespace coppice::data
