#include "coppice/report/run_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "coppice/base/error.h"
#include "coppice/report/runs_page.h"
#include "tests/testing/errors.h"
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
    EXPECT_THAT(e.what(), HasSubstr("metrics.jsonl:2: line 1, column 2"));
  }
}

// Whatever reads the value, and however late: the complaint names file, line and key.
TEST(RunRecordRead, NamesFileLineAndKeyOfAValueThatMakesNoSense) {
  const std::pair<const char*, const char*> bad[] = {
      {R"({"step": "x", "loss": 1})", "step: found a text; wanted a number"},
      {R"({"loss": 1})", "the key 'step' is missing"},
      {R"({"event": "growth", "step": "x", "experts": [2, 4]})", "step: found a text; wanted a number"},
      {R"({"event": "growth", "step": "x"})", "step: found a text; wanted a number"},
      {R"({"event": "growth", "step": 1, "experts": [2, 1e300]})", "experts[1]: found 1e300; wanted an integer"},
      {R"({"event": "growth", "step": 1, "experts": [2, "4"]})", "experts[1]: found a text; wanted an integer"},
      {R"({"event": "routing", "step": 1, "tokens": {"web": {"0": [1, null]}}})", "tokens.web.0[1]: found null"},
      {R"({"event": "routing", "step": 1, "tokens": [1]})", "tokens: found an array; wanted an object"},
  };
  for (const auto& [line, says] : bad) {
    SCOPED_TRACE(line);
    const testing::TempDir dir;
    write(dir.path() / "config.toml", "");
    write(dir.path() / "metrics.jsonl", std::string("{\"step\": 1, \"loss\": 3.5}\n\n") + line + "\n");
    testing::expect_error(ErrorCode::kFormat, {"metrics.jsonl:3: ", says},
                          [&] { (void)runs_page(read_runs({dir.path()})).html(); });
  }
}

TEST(RunRecordRead, NamesTheSettingThatIsNoInteger) {
  const testing::TempDir dir;
  write(dir.path() / "config.toml", "[train]\nseed = 1e300\n");
  write(dir.path() / "metrics.jsonl", "{\"step\": 1, \"loss\": 3.5}\n");
  testing::expect_error(ErrorCode::kFormat, {"config.toml: train.seed: found 1e+300; wanted an integer"},
                        [&] { (void)runs_page(read_runs({dir.path()})).html(); });
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
