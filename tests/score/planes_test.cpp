#include "coppice/score/planes.h"

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "tests/guarded/devices.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::score {
namespace {

class PlanesOf : public ::testing::TestWithParam<at::Device> {
 protected:
  Planes::Shape shape(at::ScalarType dtype) const {
    return {.rows = 10, .dim = 3, .dtype = dtype, .device = GetParam()};
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, PlanesOf, guarded::both_devices(), guarded::device_name);

TEST_P(PlanesOf, GivesBackTheRowsFromMemoryAndFromDisk) {
  const testing::TempDir dir;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto x_RD = at::randn({10, 3}).to(dtype).to(GetParam());
    for (const uint64_t memory : {uint64_t{0}, uint64_t{1} << 20}) {
      const auto directory = dir / std::to_string(static_cast<int>(dtype) * 10 + (memory > 0));
      std::filesystem::create_directory(directory);
      Planes planes("x", directory, memory, shape(dtype));
      planes.begin(4);
      planes.write(6, x_RD.narrow(0, 6, 4));
      planes.write(0, x_RD.narrow(0, 0, 6));
      planes.finish();
      EXPECT_EQ(std::filesystem::is_empty(directory), memory > 0);
      const auto back_TD = planes.read(4, 2, 5);
      EXPECT_EQ(back_TD.device(), GetParam());
      EXPECT_TRUE(back_TD.to(at::kCPU).equal(x_RD.narrow(0, 2, 5).to(at::kCPU)));
      back_TD.zero_();
      EXPECT_TRUE(planes.read(4, 2, 5).to(at::kCPU).equal(x_RD.narrow(0, 2, 5).to(at::kCPU))) << "reads are copies";
    }
  }
}

TEST_P(PlanesOf, ReadsWhatAnEarlierRunLeft) {
  const testing::TempDir dir;
  const auto x_RD = at::randn({10, 3}).to(GetParam());
  {
    Planes planes("x", dir.path(), 0, shape(at::kFloat));
    planes.begin(1);
    planes.write(0, x_RD);
    planes.finish();
  }
  const Planes planes("x", dir.path(), 0, shape(at::kFloat));
  ASSERT_EQ(planes.layers(), std::vector<int64_t>{1});
  EXPECT_TRUE(planes.read(1, 0, 10).to(at::kCPU).equal(x_RD.to(at::kCPU)));
  testing::expect_error(ErrorCode::kShape, {"does not belong to this work"},
                        [&] { const Planes other("x", dir.path(), 0, shape(at::kBFloat16)); });
}

}  // namespace
}  // namespace coppice::score
