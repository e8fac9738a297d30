#include "coppice/output/units.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "coppice/io/block_file.h"
#include "tests/output/output_examples.h"
#include "tests/testing/temp_dir.h"

namespace coppice::output {
namespace {

using testing::computed;
using testing::copy_of;
using testing::TempDir;

constexpr int64_t kMiB = 1 << 20;

OutputLayout plan_of(const std::vector<OutputTensor>& tensors, uint64_t max_shard_bytes = uint64_t{1} << 40) {
  OutputLayout plan;
  plan.add("", plan_output(infos_of(tensors), max_shard_bytes, "model"), tensors);
  return plan;
}

// Every byte of every file's data belongs to exactly one unit.
void expect_each_byte_once(const OutputLayout& plan) {
  std::vector<std::map<uint64_t, uint64_t>> ranges(plan.files().size());
  for (const OutputUnit& unit : plan.units()) {
    uint64_t bytes = 0;
    for (const UnitSegment& segment : unit.segments) bytes += segment.bytes;
    EXPECT_EQ(bytes, unit.bytes);
    for (const UnitPlace& place : unit.places) EXPECT_TRUE(ranges[place.file].emplace(place.offset, unit.bytes).second);
  }
  for (size_t file = 0; file < ranges.size(); ++file) {
    uint64_t end = plan.files()[file].layout.header_bytes;
    for (const auto& [offset, bytes] : ranges[file]) {
      EXPECT_EQ(offset, end);
      end = offset + bytes;
    }
    EXPECT_EQ(end, plan.files()[file].layout.file_bytes);
  }
}

TEST(OutputLayout, CutsLargeCopiesWhereBlocksOfTheOutputEnd) {
  const TempDir dir;
  const auto source = testing::write_source(dir / "s", {777, 9 * kMiB + 5});
  const std::vector<OutputTensor> tensors = {copy_of(source, "t0", "a"), copy_of(source, "t1", "b")};
  const OutputLayout plan = plan_of(tensors);
  expect_each_byte_once(plan);
  ASSERT_EQ(plan.units().size(), 4u);  // the small one, and three windows
  for (size_t i = 2; i < plan.units().size(); ++i) {
    EXPECT_EQ(plan.units()[i].places.front().offset % io::kBlockBytes, 0u);
  }
  for (const auto& unit : plan.units()) EXPECT_LE(unit.bytes, OutputLayout::kWindowBytes);
}

TEST(OutputLayout, ReadsOnceWhatIsWrittenTwice) {
  const TempDir dir;
  const auto source = testing::write_source(dir / "s", {6 * kMiB});
  const std::vector<OutputTensor> tensors = {copy_of(source, "t0", "a"), copy_of(source, "t0", "b"),
                                             copy_of(source, "t0", "c")};
  for (const uint64_t shard_bytes : {uint64_t{1} << 40, uint64_t{6} << 20}) {
    const OutputLayout plan = plan_of(tensors, shard_bytes);
    expect_each_byte_once(plan);
    ASSERT_EQ(plan.units().size(), 2u);
    EXPECT_EQ(plan.units()[0].places.size(), 3u);
    EXPECT_EQ(plan.units()[0].bytes_written(), 3 * plan.units()[0].bytes);
  }
  // At another place in the block the bytes have to be read again.
  const std::vector<OutputTensor> shifted = {copy_of(source, "t0", "a"), computed("x", 100, 0),
                                             copy_of(source, "t0", "b")};
  const OutputLayout plan = plan_of(shifted);
  expect_each_byte_once(plan);
  for (const auto& unit : plan.units()) EXPECT_EQ(unit.places.size(), 1u);
}

TEST(OutputLayout, LeavesComputedPiecesWholeAndGathersSmallOnes) {
  std::vector<OutputTensor> tensors = {computed("large", 9 * kMiB, 1)};
  for (int i = 0; i < 100; ++i) tensors.push_back(computed(cat("small", i), 100'000, 2));
  tensors.push_back(computed("empty", 0, 3));
  const OutputLayout plan = plan_of(tensors);
  expect_each_byte_once(plan);
  EXPECT_EQ(plan.units().size(), 1u + 3u);  // 100 of 100 kB in units of up to 4 MiB
  EXPECT_EQ(plan.units()[0].bytes, 9u << 20);
  for (const auto& unit : plan.units()) EXPECT_TRUE(unit.computes());
}

TEST(OutputLayout, CutsComputedPiecesThatCanBe) {
  const std::vector<OutputTensor> tensors = {computed("small", 100, 0), computed("large", 9 * kMiB, 1, true)};
  const OutputLayout plan = plan_of(tensors);
  expect_each_byte_once(plan);
  EXPECT_EQ(plan.units().size(), 1u + 3u);
  for (const auto& unit : plan.units()) EXPECT_LE(unit.bytes, OutputLayout::kWindowBytes);
  for (size_t i = 2; i < 4; ++i) EXPECT_EQ(plan.units()[i].places[0].offset % io::kBlockBytes, 0u);
}

TEST(OutputLayout, ComputesOnceWhatHasOneIdentity) {
  std::vector<OutputTensor> tensors;
  for (const char* name : {"a", "b", "c"}) {
    tensors.push_back(computed(name, 6 * kMiB, 1, true));
    tensors.back().pieces.front().identity = name[0] == 'c' ? 8 : 7;
  }
  const OutputLayout plan = plan_of(tensors);
  expect_each_byte_once(plan);
  ASSERT_EQ(plan.units().size(), 4u);  // two windows of a and b, two of c
  EXPECT_EQ(plan.units()[0].places.size(), 2u);
  EXPECT_EQ(plan.units()[2].places.size(), 1u);
  EXPECT_TRUE(plan.units()[0].computes());
}

TEST(OutputLayout, GivesEveryPartAboutTheSame) {
  std::vector<OutputTensor> tensors;
  for (int i = 0; i < 40; ++i) tensors.push_back(computed(cat("t", i), (1 + i % 3) * kMiB, 0));
  const OutputLayout plan = plan_of(tensors);
  const double total = static_cast<double>(plan.file_bytes());
  for (const uint32_t count : {1u, 2u, 3u, 7u, 1000u}) {
    std::vector<size_t> all;
    for (uint32_t part = 1; part <= count; ++part) {
      double bytes = 0;
      for (const size_t unit : plan.units_of({part, count})) {
        all.push_back(unit);
        bytes += static_cast<double>(plan.units()[unit].bytes_written());
      }
      EXPECT_LE(bytes, total / count + 3 * kMiB);
    }
    std::vector<size_t> wanted(plan.units().size());
    std::iota(wanted.begin(), wanted.end(), size_t{0});
    EXPECT_EQ(all, wanted) << count;
  }
}

TEST(OutputLayout, HasADigestOfItsOwn) {
  const std::vector<OutputTensor> tensors = {computed("a", 9 * kMiB, 1), computed("b", 2 * kMiB, 1)};
  const std::vector<OutputTensor> renamed = {computed("a", 9 * kMiB, 1), computed("c", 2 * kMiB, 1)};
  EXPECT_EQ(plan_of(tensors).digest(), plan_of(tensors).digest());
  const std::set<std::string> digests = {plan_of(tensors).digest(), plan_of(renamed).digest(),
                                         plan_of(tensors, kMiB).digest()};
  EXPECT_EQ(digests.size(), 3u);
}

}  // namespace
}  // namespace coppice::output
