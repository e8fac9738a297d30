#include "coppice/matrix/unit_slice.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "tests/testing/errors.h"

namespace coppice::matrix {
namespace {

using families::Role;

/// 4 x 4, of the numbers from 0 on.
MatrixRows numbers(Role role) {
  return {role, 4, 4, [](int64_t first, std::span<float> out) {
            std::iota(out.begin(), out.end(), 4.0f * static_cast<float>(first));
          }};
}

TEST(UnitSlice, IsRowsOfGateAndColumnsOfDownTimesTheFactor) {
  EXPECT_EQ(unit_slice(numbers(Role::kExpertGate), 1, 2, 1).all(), (std::vector<float>{8, 9, 10, 11, 12, 13, 14, 15}));
  EXPECT_EQ(unit_slice(numbers(Role::kExpertDown), 1, 2, 0.5).all(),
            (std::vector<float>{1, 1.5, 3, 3.5, 5, 5.5, 7, 7.5}));
}

// A layer may have experts of another width than the rest.
TEST(UnitSlice, RefusesMatricesThatItCannotCut) {
  const RowFill none = [](int64_t, std::span<float>) {};
  for (const Role role : {Role::kExpertGate, Role::kExpertDown}) {
    testing::expect_error(ErrorCode::kShape, {"'w': 7 units", "2 equal parts"},
                          [&] { (void)unit_slice({role, 7, 7, none, "'w'"}, 1, 2, 1); });
  }
}

}  // namespace
}  // namespace coppice::matrix
