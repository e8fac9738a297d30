#include "coppice/api/call.h"

#include <gtest/gtest.h>

#include <fstream>

#include "coppice/api/error_of.h"
#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"

namespace coppice::api {
namespace {

using coppice::testing::expect_error;
using coppice::testing::TempDir;
using coppice::testing::tiny_model;

TEST(CallOptions, AreThoseOfTheCommandLineWithoutItsPrinting) {
  for (const std::string_view command : callable_commands()) {
    std::vector<std::string> names;
    for (const OptionInfo& option : options_of(command)) names.push_back(option.name);
    EXPECT_THAT(names, ::testing::Contains(command == "verify" ? "BEFORE" : "MODEL")) << command;
    EXPECT_THAT(names, ::testing::Not(::testing::Contains("json"))) << command;
    EXPECT_FALSE(summary_of(command).empty()) << command;
  }
  expect_error(ErrorCode::kUsage, {"'expnad': is not a command", "expand"}, [] { (void)options_of("expnad"); });
}

TEST(CallExpand, TakesFlagsNumbersTextsAndPaths) {
  const TempDir dir;
  const auto model = tiny_model(dir / "m");
  const Expanded done = expand(model, dir / "out",
                               {{"experts", 6},
                                {"expert-init", "copy_noise:lambda=0.5"},
                                {"allow-regroup", false},
                                {"max-shard-bytes", "1MB"},
                                {"seed", 3}});
  EXPECT_TRUE(done.ok);
  EXPECT_EQ(done.experts_before, 4);
  EXPECT_EQ(done.experts_after, 6);
  EXPECT_EQ(done.exact, false);
  EXPECT_EQ(inspect(dir / "out").experts, 6);
  EXPECT_TRUE(verify({model}, dir / "out").ok);
}

TEST(CallExpand, RefusesNamesAndValuesThatItDoesNotHave) {
  const Settings none;
  const auto with = [](const char* name, const Value& value) {
    return Settings{{"model", "m"}, {"out", "o"}, {name, value}};
  };
  expect_error(ErrorCode::kUsage, {"'expert': is not an option of 'expand'", "'experts'"},
               [&] { call("expand", with("expert", "2x")); });
  expect_error(ErrorCode::kUsage, {"'expert_int': is not an option", "'expert_init'"},
               [&] { call("expand", with("expert_int", "copy"), '_'); });
  expect_error(ErrorCode::kUsage, {"'help': is not an option"}, [&] { call("expand", with("help", true)); });
  expect_error(ErrorCode::kUsage, {"undo: found a value; wanted true or false"},
               [&] { call("expand", with("undo", "yes")); });
  expect_error(ErrorCode::kUsage, {"seed: found true or false; wanted a value (integer)"},
               [&] { call("expand", with("seed", true)); });
  expect_error(ErrorCode::kUsage, {"seed: found a list of 2 values"},
               [&] { call("expand", with("seed", std::vector<std::string>{"1", "2"})); });
  expect_error(ErrorCode::kUsage, {"model: given as an argument and as an option"},
               [&] { expand("m", "o", {{"model", "n"}}); });
  expect_error(ErrorCode::kUsage, {"scores: found an empty text"}, [&] { call("expand", with("scores", "")); });
  expect_error(ErrorCode::kUsage, {"MODEL and OUT: missing"}, [&] { call("expand", none); });
}

TEST(CallExpand, TakesPathsThatLookLikeOptions) {
  expect_error(ErrorCode::kNotFound, {"--undo: does not exist"}, [] { expand("--undo", "--out"); });
}

TEST(CallPlan, GivesAFileThatExpandTakes) {
  const TempDir dir;
  const auto model = tiny_model(dir / "m");
  const std::string text = plan(model, {{"experts", "1.5x"}, {"seed", 5}});
  EXPECT_THAT(text, ::testing::HasSubstr("seed = 5"));
  std::ofstream(dir / "plan.toml") << text;
  EXPECT_EQ(expand(model, dir / "out", {{"plan", dir / "plan.toml"}}).experts_after, 6);
}

TEST(CallExpand, StopsWhenItIsAskedTo) {
  const TempDir dir;
  const auto model = tiny_model(dir / "m");
  request_interrupt();
  expect_error(ErrorCode::kInterrupted, {"stopped"}, [&] { expand(model, dir / "out"); });
  clear_interrupt();
  EXPECT_FALSE(std::filesystem::exists(dir / "out"));
  EXPECT_EQ(expand(model, dir / "out").experts_after, 8);
}

TEST(CallExpand, TellsTheSinkWhenItEnds) {
  const TempDir dir;
  const auto model = tiny_model(dir / "m");
  uint64_t done = 0, total = 0;
  int ends = 0;
  set_progress_sink([&](const ProgressView& view) {
    done = view.done;
    total = view.total;
    ends += view.last ? 1 : 0;
  });
  (void)expand(model, dir / "out");
  set_progress_sink({});
  EXPECT_GE(ends, 1);
  EXPECT_EQ(done, total);
  EXPECT_GT(total, 0U);
}

TEST(ErrorOf, GivesForeignExceptionsACode) {
  const auto code_of = [](const auto& exception) { return error_of(std::make_exception_ptr(exception)).code; };
  EXPECT_EQ(code_of(Error(ErrorCode::kShape, "s")), ErrorCode::kShape);
  EXPECT_EQ(code_of(std::bad_alloc()), ErrorCode::kIo);
  EXPECT_EQ(code_of(std::filesystem::filesystem_error("f", std::make_error_code(std::errc::io_error))), ErrorCode::kIo);
  EXPECT_EQ(code_of(std::runtime_error("CUDA out of memory")), ErrorCode::kIo);
  EXPECT_EQ(code_of(std::logic_error("l")), ErrorCode::kInternal);
}

}  // namespace
}  // namespace coppice::api
