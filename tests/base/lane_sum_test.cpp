#include "coppice/base/lane_sum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace coppice {
namespace {

std::vector<float> numbers(size_t count) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = 1.0f / static_cast<float>(3 * i + 1) - 0.125f;
  return out;
}

/// Lane by lane, the lanes added in pairs.
double sum_by_hand(const std::vector<float>& values) {
  double lanes[16] = {};
  for (size_t i = 0; i < values.size(); ++i) lanes[i % 16] += static_cast<double>(values[i]);
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

double identity(float x) { return x; }

TEST(LaneSum, PutsTheNumbersInSixteenLanesHoweverTheyArrive) {
  const auto values = numbers(1000);
  for (const size_t piece : {size_t{1}, size_t{3}, size_t{16}, size_t{37}, size_t{1000}}) {
    LaneSum sum;
    for (size_t i = 0; i < values.size(); i += piece) {
      sum.add_each(std::span(values).subspan(i, std::min(piece, values.size() - i)), identity);
    }
    EXPECT_EQ(sum.total(), sum_by_hand(values)) << piece;
    EXPECT_EQ(sum.count(), values.size());
  }
}

TEST(LaneSum, OfTermsIsThatOfNumbersOneAfterTheOther) {
  for (const size_t count : {size_t{0}, size_t{1}, size_t{15}, size_t{16}, size_t{17}, size_t{1000}}) {
    const auto values = numbers(count), ones = std::vector<float>(count, 1.0f);
    const auto term = [&](int64_t i) { return double{values[static_cast<size_t>(i)]}; };
    EXPECT_EQ(lane_sum<double>(static_cast<int64_t>(count), term), sum_by_hand(values)) << count;
    EXPECT_EQ(dot(values, ones), sum_by_hand(values)) << count;
  }
}

}  // namespace
}  // namespace coppice
