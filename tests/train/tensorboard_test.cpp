#include "coppice/train/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>

#include "coppice/io/atomic_file.h"
#include "coppice/train/metrics.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;

TEST(Crc32c, AgreesWithThePublishedAnswers) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);            // the check value of the polynomial
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

std::string event_file(const fs::path& run) {
  for (const auto& entry : fs::directory_iterator(run)) {
    if (entry.path().filename().string().find("tfevents") != std::string::npos) return read_file(entry.path());
  }
  return {};
}

TEST(EventWriterScalars, WritesRecordsWhoseLengthsAddUp) {
  const testing::TempDir dir;
  {
    EventWriter writer(dir.path(), std::nullopt);
    const std::vector<Scalar> values{{"loss", 2.5}, {"layer/3/maxvio", 0.25}};
    writer.scalars(7, values);
  }
  const std::string bytes = event_file(dir.path());
  size_t at = 0, records = 0;
  while (at < bytes.size()) {
    uint64_t length = 0;
    std::memcpy(&length, bytes.data() + at, sizeof length);
    at += 8 + 4 + length + 4;
    ++records;
  }
  EXPECT_EQ(at, bytes.size());
  EXPECT_EQ(records, 2u);
  EXPECT_NE(bytes.find("brain.Event:2"), std::string::npos);
  EXPECT_NE(bytes.find("layer/3/maxvio"), std::string::npos);
}

TEST(MetricsLogResume, CutsBackToTheCheckpointAndDropsALineCutShort) {
  const testing::TempDir dir;
  {
    MetricsLog log(dir.path(), std::nullopt);
    for (int64_t step = 1; step <= 4; ++step) {
      const std::vector<Scalar> values{{"loss", static_cast<double>(step)}};
      log.step(step, values);
      log.event("checkpoint", step);
    }
  }
  std::ofstream(dir / "metrics.jsonl", std::ios::app) << R"({"step": 5, "lo)";
  {
    MetricsLog log(dir.path(), 2);
    log.event("resume", 2);
  }
  EXPECT_EQ(read_file(dir / "metrics.jsonl"),
            "{\"step\": 1, \"loss\": 1.0}\n{\"event\": \"checkpoint\", \"step\": 1}\n"
            "{\"step\": 2, \"loss\": 2.0}\n{\"event\": \"checkpoint\", \"step\": 2}\n"
            "{\"event\": \"resume\", \"step\": 2}\n");
}

TEST(MetricsLogResume, NamesTheLineThatIsNoJson) {
  const testing::TempDir dir;
  std::ofstream(dir / "metrics.jsonl") << "{\"step\": 1}\n{oops\n{\"step\": 2}\n";
  testing::expect_error(ErrorCode::kFormat, {"metrics.jsonl:2: "}, [&] { MetricsLog log(dir.path(), 2); });
}

}  // namespace
}  // namespace coppice::train
