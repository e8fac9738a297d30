#include "coppice/report/run_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "coppice/base/error.h"
#include "coppice/report/runs_page.h"
#include "tests/testing/temp_dir.h"

namespace coppice::report {
namespace {

using ::testing::HasSubstr;

void write(const std::filesystem::path& path, const std::string& text) { std::ofstream(path) << text; }

TEST(RunRecordRead, SplitsSeriesFromEventsAndDropsALineBeingWritten) {
  testing::TempDir dir;
  write(dir.path() / "config.toml", "seed = 1\n");
  write(dir.path() / "metrics.jsonl",
        "{\"step\": 1, \"loss\": 3.5, \"tokens_seen\": 100}\n"
        "{\"event\": \"checkpoint\", \"step\": 1}\n"
        "{\"step\": 2, \"loss\": 3.25, \"tokens_seen\": 200}\n"
        "{\"step\": 3, \"lo");
  const auto run = RunRecord::read(dir.path());
  EXPECT_EQ(run.series.at("loss"), (std::vector<std::pair<double, double>>{{1, 3.5}, {2, 3.25}}));
  EXPECT_EQ(run.events.size(), 1u);
  EXPECT_THAT(runs_page({run}).html(), HasSubstr("[100.0, 200.0]")) << "losses are drawn against tokens";
}

TEST(RunRecordRead, NamesFileAndLineOfABrokenLine) {
  testing::TempDir dir;
  write(dir.path() / "config.toml", "");
  write(dir.path() / "metrics.jsonl", "{\"step\": 1}\n{oops}\n");
  try {
    (void)RunRecord::read(dir.path());
    FAIL() << "a broken line was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::kFormat);
    EXPECT_THAT(e.what(), HasSubstr("metrics.jsonl line 2"));
  }
}

TEST(RunRecordRead, SaysThatAFolderIsNoRun) {
  testing::TempDir dir;
  try {
    (void)RunRecord::read(dir.path());
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::kNotFound);
  }
}

}  // namespace
}  // namespace coppice::report
