#include "coppice/models/expert_layout.h"

#include <gtest/gtest.h>

#include <cstring>

namespace coppice::models {
namespace {

using families::kStacked;
using families::kStackedInOut;
using families::kStackedInOutInterleaved;
using families::kStackedInterleaved;
using families::Layout;
using families::Role;
using families::TensorRule;
using families::TensorSlot;
using families::When;

struct Case {
  const char* name;
  Role role;
  Layout layout;
  std::vector<int64_t> shape;
};

const Case kCases[] = {
    {"own", Role::kExpertDown, {}, {5, 7}},
    {"fused", Role::kExpertGateUp, kStacked, {3, 14, 5}},
    {"fused_in_out", Role::kExpertGateUp, kStackedInOut, {3, 5, 14}},
    {"interleaved", Role::kExpertGateUp, kStackedInterleaved, {3, 14, 5}},
    {"interleaved_in_out", Role::kExpertGateUp, kStackedInOutInterleaved, {3, 5, 14}},
    {"flat", Role::kExpertUp, kStacked, {21, 5}},
    {"flat_in_out", Role::kExpertDown, kStackedInOut, {21, 5}},
    {"large_in_out", Role::kExpertDown, kStackedInOut, {2, 70, 45}},
    {"fused_bias", Role::kExpertGateUpBias, kStackedInterleaved, {3, 14}},
    {"bias", Role::kExpertDownBias, kStacked, {3, 5}},
};

class EveryLayout : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Layouts, EveryLayout, ::testing::ValuesIn(kCases),
                         [](const auto& layout) { return layout.param.name; });

// Each element of the expert is in one matrix, and comes back to its place.
TEST_P(EveryLayout, CoversTheExpertOnceAndGoesBothWays) {
  const Case& c = GetParam();
  const TensorRule rule{"", c.role, {}, When::kAlways, c.layout};
  const TensorSlot slot{"x", &rule, 0, -1, c.shape, 0};
  const int64_t experts = c.layout.stacked ? (c.shape[0] == 21 ? 3 : c.shape[0]) : 1;
  int64_t elements = 1;
  for (const int64_t size : c.shape) elements *= size;
  elements /= experts;
  std::vector<uint16_t> expert(static_cast<size_t>(elements)), back(expert.size()), seen(expert.size());
  for (size_t i = 0; i < expert.size(); ++i) expert[i] = static_cast<uint16_t>(i);
  for (const ExpertMatrix& place : expert_matrices(slot, experts)) {
    std::vector<uint16_t> matrix(static_cast<size_t>(place.rows * place.cols));
    gather(place, 2, std::as_bytes(std::span(expert)), std::as_writable_bytes(std::span(matrix)));
    for (int64_t r = 0; r < place.rows; ++r) {
      for (int64_t k = 0; k < place.cols; ++k) {
        const uint16_t value = matrix[static_cast<size_t>(r * place.cols + k)];
        EXPECT_EQ(value, place.begin + r * place.row_step + k * place.col_step);
        ++seen[value];
      }
    }
    scatter(place, 2, std::as_bytes(std::span(matrix)), std::as_writable_bytes(std::span(back)));
  }
  EXPECT_EQ(seen, std::vector<uint16_t>(expert.size(), 1));
  EXPECT_EQ(back, expert);
}

TEST(ExpertMatrices, PutGateFirst) {
  const auto places = [](Layout layout, std::vector<int64_t> shape) {
    const TensorRule rule{"", Role::kExpertGateUp, {}, When::kAlways, layout};
    return expert_matrices({"x", &rule, 0, -1, std::move(shape), 0}, 2);
  };
  const auto halves = places(kStackedInOut, {2, 5, 14});
  ASSERT_EQ(halves.size(), 2u);
  EXPECT_EQ(halves[0].role, Role::kExpertGate);
  EXPECT_EQ(halves[0].rows, 7);
  EXPECT_EQ(halves[0].cols, 5);
  EXPECT_EQ(halves[1].begin, 7);
  const auto mixed = places(kStackedInOutInterleaved, {2, 5, 14});
  EXPECT_EQ(mixed[1].begin, 1);
  EXPECT_EQ(mixed[1].row_step, 2);
  EXPECT_EQ(mixed[1].col_step, 14);
}

}  // namespace
}  // namespace coppice::models
