#include "coppice/output/write_output.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "coppice/base/error.h"
#include "tests/output/output_examples.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::output {
namespace {

namespace fs = std::filesystem;
using testing::computed;
using testing::copy_of;
using testing::expect_error;
using testing::TempDir;

constexpr int64_t kMiB = 1 << 20;
constexpr uint64_t kShardBytes = uint64_t{9} << 20;
const io::WorkIdentity kWork{.plan = "plan", .source = "source"};

/// Copies and computations of every size, at odd offsets, over several shards.
struct Example {
  explicit Example(const fs::path& directory)
      : source(testing::write_source(directory / "source", {333, 5 * kMiB + 1, 3 * kMiB, 2 * kMiB + 4096, 8})) {
    for (const char* copy : {"first", "second"}) {
      for (int t = 0; t < 5; ++t) tensors.push_back(copy_of(source, cat("t", t), cat(copy, ".", t)));
      tensors.push_back(computed(cat(copy, ".noise"), 5 * kMiB - 17, tensors.size()));
      tensors.push_back(computed(cat(copy, ".router"), 9999, tensors.size()));
      tensors.push_back(computed(cat(copy, ".rows"), 9 * kMiB + 5, tensors.size(), true));
    }
    shards = plan_output(infos_of(tensors), kShardBytes, "model");
    plan.add("", shards, tensors);
    expected = testing::expected_files(directory / "scratch", shards, tensors);
  }

  void expect_written(const fs::path& out) const {
    ASSERT_EQ(static_cast<size_t>(std::distance(fs::directory_iterator(out), fs::directory_iterator())),
              expected.size());
    for (const auto& [name, bytes] : expected) EXPECT_TRUE(read_file(out / name) == bytes) << name;
  }

  io::SafetensorsFile source;
  std::vector<OutputTensor> tensors;
  io::ShardLayout shards;
  OutputLayout plan;
  std::map<std::string, std::string> expected;
};

WrittenBytes write_part(const fs::path& target, const Example& example, io::Part part, size_t threads, bool resume) {
  io::PartialDirectory out(target, part, resume, kWork);
  const auto bytes = write_output(out, example.plan, part, threads);
  out.seal([] {});
  return bytes;
}

TEST(WriteOutput, GivesTheSameBytesForAnyThreadsAndParts) {
  const TempDir dir;
  const Example example(dir.path());
  ASSERT_GT(example.expected.size(), 3u);
  for (const size_t threads : {1, 2, 5}) {
    const auto out = dir / cat("threads", threads);
    write_part(out, example, {}, threads, false);
    example.expect_written(out);
  }
  for (const uint32_t count : {2u, 3u, 50u}) {
    const auto out = dir / cat("parts", count);
    for (uint32_t part = count; part > 0; --part) {
      EXPECT_FALSE(fs::exists(out));
      write_part(out, example, {part, count}, 2, false);
    }
    example.expect_written(out);
  }
}

TEST(WriteOutput, GivesTheSameBytesWhereDirectWritesAreRefused) {
  const fs::path memory = "/dev/shm";
  if (!fs::is_directory(memory)) GTEST_SKIP() << "no " << memory;
  const TempDir dir;
  const Example example(dir.path());
  const auto out = memory / dir.path().filename();
  write_part(out, example, {}, 2, false);
  example.expect_written(out);
  fs::remove_all(out);
}

TEST(WriteOutput, ContinuesAfterAnErrorWithWhatWasNotDone) {
  const TempDir dir;
  Example example(dir.path());
  for (auto& tensor : example.tensors) {  // the last ones fail, once most is written
    if (!tensor.info.name.starts_with("second.noise")) continue;
    const PieceMaker::Fill stop = [](uint64_t, std::span<std::byte>) {
      throw Error(ErrorCode::kInterrupted, "stopped");
    };
    tensor.pieces[0] = computed_piece(tensor.info.bytes, [stop] { return stop; });
  }
  expect_error(ErrorCode::kInterrupted, {"stopped"}, [&] { write_part(dir / "out", example, {}, 1, true); });
  EXPECT_FALSE(fs::exists(dir / "out"));

  const Example again(dir.path());
  const auto bytes = write_part(dir / "out", again, {}, 2, true);
  EXPECT_GT(bytes.resumed, 0u);
  EXPECT_GE(bytes.written, static_cast<uint64_t>(5 * kMiB - 17));
  again.expect_written(dir / "out");
}

TEST(WriteOutput, WritesAgainWhatLayInAFileThatIsGone) {
  const TempDir dir;
  const Example example(dir.path());
  uint64_t all = 0;
  {
    io::PartialDirectory out(dir / "out", {}, true, kWork);
    all = write_output(out, example.plan, {}, 2).written;
    fs::remove(out.path() / example.shards.shards[1].file);
    fs::resize_file(out.path() / example.shards.shards[2].file, 5000);
  }
  const auto bytes = write_part(dir / "out", example, {}, 2, true);
  EXPECT_EQ(bytes.written + bytes.resumed, all);
  EXPECT_GT(bytes.written, 0u);
  EXPECT_GT(bytes.resumed, 0u);
  example.expect_written(dir / "out");
}

// 12 MiB each, and 32 MiB at a time: two.
TEST(WriteOutput, BoundsTheComputationsInFlight) {
  const TempDir dir;
  std::atomic<int> inside = 0, most = 0;
  std::vector<OutputTensor> tensors;
  for (int i = 0; i < 6; ++i) {
    tensors.push_back(computed_tensor(tensor_info(cat("t", i), io::Dtype::kU8, {12 * kMiB}), [&](std::span<std::byte>) {
      const int now = ++inside;
      int seen = most;
      while (seen < now && !most.compare_exchange_weak(seen, now)) {
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      --inside;
    }));
  }
  OutputLayout plan;
  plan.add("", plan_output(infos_of(tensors), uint64_t{1} << 40, "model"), tensors);
  io::PartialDirectory out(dir / "out", {}, false, kWork);
  write_output(out, plan, {}, 8);
  EXPECT_LE(most, 2);
  EXPECT_GE(most, 1);
}

}  // namespace
}  // namespace coppice::output
