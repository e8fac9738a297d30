#include "coppice/cost/link_fit.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::cost {
namespace {

using testing::expect_error;

std::vector<LinkPoint> made(const Link& link, double noise = 0) {
  std::vector<LinkPoint> points;
  double sign = 1;
  for (const int64_t ranks : {2, 4}) {
    for (const double bytes : {1e2, 1e4, 1e6, 1e8}) {
      points.push_back({ranks, bytes, link_seconds(link, ranks, bytes) * (1 + sign * noise)});
      sign = -sign;
    }
  }
  return points;
}

TEST(LinkFitOf, FindsTheLinkThatMadeThePoints) {
  for (const Link link : {Link{1e9, 50e-6}, Link{50e9, 3e-6}, Link{1e8, 1e-3}}) {
    const LinkFit found = fit_link(made(link));
    EXPECT_NEAR(found.link.bytes_per_s, link.bytes_per_s, 1e-6 * link.bytes_per_s);
    EXPECT_NEAR(found.link.latency_s, link.latency_s, 1e-6 * link.latency_s);
    EXPECT_LT(found.worst_error, 1e-6);
  }
}

TEST(LinkFitOf, SaysHowFarThePointsAreOff) {
  const Link link{1e9, 50e-6};
  const LinkFit found = fit_link(made(link, 0.1));
  EXPECT_NEAR(found.link.bytes_per_s, link.bytes_per_s, 0.15 * link.bytes_per_s);
  EXPECT_NEAR(found.link.latency_s, link.latency_s, 0.15 * link.latency_s);
  EXPECT_GT(found.worst_error, 0.05);
  EXPECT_LT(found.worst_error, 0.2);
}

// Times that grow more than the bytes would need a latency below 0.
TEST(LinkFitOf, GivesNoLatencyBelowZero) {
  const std::vector<LinkPoint> points = {{2, 1e6, 1e-3}, {2, 2e6, 3e-3}};
  const LinkFit found = fit_link(points);
  EXPECT_EQ(found.link.latency_s, 0);
  EXPECT_GT(found.link.bytes_per_s, 0);
  EXPECT_GT(found.worst_error, 0.1);
}

TEST(LinkFitOf, RefusesPointsThatSayNothing) {
  const auto refuses = [](std::vector<LinkPoint> points, const char* word) {
    expect_error(ErrorCode::kFormat, {word}, [&] { (void)fit_link(points); });
  };
  refuses({}, "0 given");
  refuses({{2, 1e6, 1}}, "1 given");
  refuses({{2, 1e6, 1}, {3, 2e6, 2}}, "cannot be told apart");
  refuses({{2, 1e6, 1}, {2, 1e6, 2}}, "cannot be told apart");
  refuses({{2, 1e3, 1}, {2, 1e9, 1e-3}}, "do not grow");
  refuses({{1, 1e6, 1}, {2, 2e6, 2}}, "1 ranks");
  refuses({{2, 0, 1}, {2, 2e6, 2}}, "0 bytes");
  refuses({{2, 1e6, 0}, {2, 2e6, 2}}, "0 s");
}

TEST(MeasuredPoints, AreReadFromAFile) {
  testing::TempDir dir;
  std::ofstream(dir / "points") << "# Gloo\n2 1e3 0.002 # small\n\n4\t1000000 0.02\r\n2 1e6 0.012\n";
  const auto points = read_points(dir / "points");
  ASSERT_EQ(points.size(), 3u);
  EXPECT_EQ(points[1].ranks, 4);
  EXPECT_DOUBLE_EQ(points[1].bytes, 1e6);
  EXPECT_DOUBLE_EQ(points[1].seconds, 0.02);
  const Cluster cluster = find_cluster((dir / "points").string());
  EXPECT_EQ(cluster.gpus_per_node, 1);
  EXPECT_DOUBLE_EQ(cluster.network.bytes_per_s, fit_link(points).link.bytes_per_s);
  EXPECT_NE(cluster.source.find("3 measured points"), std::string::npos);
}

TEST(MeasuredPoints, AreRefusedWithFileAndLine) {
  testing::TempDir dir;
  for (const char* line :
       {"2 1e6", "2 1e6 0.1 4", "1 1e6 0.1", "2.5 1e6 0.1", "two 1e6 0.1", "2 1e6 0.1x", "nan 1 1"}) {
    std::ofstream(dir / "points") << "2 1e3 0.002\n" << line << "\n";
    expect_error(ErrorCode::kFormat, {"points:2", "wanted"}, [&] { (void)read_points(dir / "points"); });
  }
  expect_error(ErrorCode::kNotFound, {"nowhere"}, [&] { (void)read_points(dir / "nowhere"); });
}

}  // namespace
}  // namespace coppice::cost
