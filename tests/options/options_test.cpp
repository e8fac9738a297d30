#include "coppice/options/options.h"

#include <gtest/gtest.h>

#include <fstream>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice {
namespace {

using testing::expect_error;

struct Factor {
  int value = 2;
  static Factor from_text(std::string_view text) {
    if (!text.ends_with('x')) throw Error(ErrorCode::kUsage, cat("found '", text, "'; wanted a factor such as 2x"));
    return {text[0] - '0'};
  }
  std::string to_text() const { return cat(value, "x"); }
};

struct GrowOptions {
  std::filesystem::path model, out;
  Factor experts;
  std::vector<std::string> names;
  std::vector<double> weights;
  std::optional<std::string> select;
  uint64_t seed = 0;
  int layers = -1;
  double rate = 1e-5;
  bool resume = false;
  Json growth;
  static constexpr auto fields() {
    using O = GrowOptions;
    return std::tuple{operand("MODEL", &O::model, "source folder"),
                      operand("OUT", &O::out, "target folder"),
                      field("experts", &O::experts, "number of experts afterwards"),
                      field("names", &O::names, "some names"),
                      field("data.weights", &O::weights, "shares"),
                      field("select", &O::select, "how parents are chosen"),
                      field("seed", &O::seed, "RNG seed"),
                      field("layers", &O::layers, "a count"),
                      field("optimizer.rate", &O::rate, "learning rate"),
                      field("resume", &O::resume, "go on"),
                      field("growth", &O::growth, "growth steps")};
  }
};

struct ManyOptions {
  std::vector<std::filesystem::path> inputs;
  static constexpr auto fields() { return std::tuple{operand("INPUT", &ManyOptions::inputs, "files")}; }
};

struct ManyThenOneOptions {
  std::vector<std::filesystem::path> inputs;
  std::filesystem::path out;
  static constexpr auto fields() {
    using O = ManyThenOneOptions;
    return std::tuple{operand("INPUT", &O::inputs, "files"), operand("OUT", &O::out, "target")};
  }
};

struct MaybeOptions {
  std::optional<std::string> what;
  static constexpr auto fields() { return std::tuple{operand("WHAT", &MaybeOptions::what, "a name")}; }
};

template <class Struct = GrowOptions>
Struct parsed(std::initializer_list<std::string_view> args) {
  return parse<Struct>("grow", "grows", std::vector<std::string_view>(args));
}

class Config : public ::testing::Test {
 protected:
  std::string write(std::string_view text) {
    std::ofstream(dir_ / "run.toml", std::ios::binary) << text;
    return (dir_ / "run.toml").string();
  }
  testing::TempDir dir_;
};

TEST(ParseFlags, KeepsDefaults) {
  const auto o = parsed({"a", "b"});
  EXPECT_EQ(o.model, "a");
  EXPECT_EQ(o.out, "b");
  EXPECT_EQ(o.experts.value, 2);
  EXPECT_FALSE(o.select.has_value());
  EXPECT_EQ(o.rate, 1e-5);
  EXPECT_TRUE(o.growth.is_null());
}

TEST(ParseFlags, SetsEveryKind) {
  const auto o = parsed({"--experts=3x", "a", "--seed", "18446744073709551615", "--layers", "-4", "--optimizer.rate",
                         "-1e-3", "b", "--select", "greedy", "--resume", "--growth", R"([{"at": 1}])"});
  EXPECT_EQ(o.experts.value, 3);
  EXPECT_EQ(o.seed, 18446744073709551615U);
  EXPECT_EQ(o.layers, -4);
  EXPECT_EQ(o.rate, -1e-3);
  EXPECT_EQ(o.select, "greedy");
  EXPECT_TRUE(o.resume);
  EXPECT_EQ(o.growth.items()[0].at("at").as_int(), 1);
}

TEST(ParseFlags, TakesAFlagBareOrWithAValue) {
  EXPECT_TRUE(parsed({"a", "b", "--resume=true"}).resume);
  EXPECT_FALSE(parsed({"a", "b", "--resume=false"}).resume);
  expect_error(ErrorCode::kUsage, {"--resume", "'maybe'", "true or false"},
               [] { parsed({"a", "b", "--resume=maybe"}); });
}

TEST(ParseFlags, TakesListsInEveryForm) {
  const std::vector<std::string> xyz = {"x", "y", "z"};
  EXPECT_EQ(parsed({"a", "b", "--names", "x,y,z"}).names, xyz);
  EXPECT_EQ(parsed({"a", "b", "--names", "x", "y", "z"}).names, xyz);
  EXPECT_EQ(parsed({"a", "b", "--names", "x", "--names", "y,z"}).names, xyz);
  EXPECT_EQ(parsed({"--names", "x", "y,z", "--seed", "1", "a", "b"}).names, xyz);
  EXPECT_EQ(parsed({"a", "b", "--data.weights", "0.5", "1"}).weights, (std::vector<double>{0.5, 1}));
}

TEST(ParseFlags, TakesEverythingAfterTwoDashesAsOperands) {
  const auto o = parsed({"--seed", "1", "--", "--a", "-b"});
  EXPECT_EQ(o.model, "--a");
  EXPECT_EQ(o.out, "-b");
}

TEST(ParseFlags, AcceptsQuietForMain) { EXPECT_EQ(parsed({"a", "--quiet", "b"}).out, "b"); }

TEST(ParseOperands, NamesThoseThatAreMissing) {
  expect_error(ErrorCode::kUsage, {"MODEL and OUT: missing", "`coppice grow --help`"}, [] { parsed({}); });
  expect_error(ErrorCode::kUsage, {"OUT: missing"}, [] { parsed({"a"}); });
  expect_error(ErrorCode::kUsage, {"INPUT: missing"}, [] { parsed<ManyOptions>({}); });
}

TEST(ParseOperands, NamesOneTooMany) {
  expect_error(ErrorCode::kUsage, {"'c'", "one operand too many"}, [] { parsed({"a", "b", "c"}); });
}

TEST(ParseOperands, MayBeManyOrNone) {
  EXPECT_EQ(parsed<ManyOptions>({"a", "b,c", "d"}).inputs, (std::vector<std::filesystem::path>{"a", "b,c", "d"}));
  EXPECT_FALSE(parsed<MaybeOptions>({}).what.has_value());
  EXPECT_EQ(parsed<MaybeOptions>({"x"}).what, "x");
}

TEST(ParseErrors, OfferTheNearestName) {
  expect_error(ErrorCode::kUsage, {"'--sed'", "not an option of 'grow'", "did you mean '--seed'?"},
               [] { parsed({"a", "b", "--sed", "3"}); });
  expect_error(ErrorCode::kUsage, {"'--expert'", "'--experts'"}, [] { parsed({"a", "b", "--expert=3x"}); });
  expect_error(ErrorCode::kUsage, {"'--temperature'", "known: ", "--optimizer.rate"},
               [] { parsed({"a", "b", "--temperature", "1"}); });
  expect_error(ErrorCode::kUsage, {"'-s'"}, [] { parsed({"a", "b", "-s"}); });
}

TEST(ParseErrors, NameTheOptionAndItsValue) {
  expect_error(ErrorCode::kUsage, {"--seed", "'-3'", "0 or more"}, [] { parsed({"a", "b", "--seed", "-3"}); });
  expect_error(ErrorCode::kUsage, {"--seed", "'1e3'"}, [] { parsed({"a", "b", "--seed", "1e3"}); });
  expect_error(ErrorCode::kUsage, {"--layers", "'3000000000'", "32 bits"},
               [] { parsed({"a", "b", "--layers", "3000000000"}); });
  for (const char* value : {"nan", "inf", "-inf", "infinity", "1e999"}) {
    expect_error(ErrorCode::kUsage, {"--optimizer.rate", value, "a finite number"},
                 [&] { parsed({"a", "b", "--optimizer.rate", value}); });
  }
  expect_error(ErrorCode::kUsage, {"--experts", "'3y'", "such as 2x"}, [] { parsed({"a", "b", "--experts", "3y"}); });
  expect_error(ErrorCode::kUsage, {"--seed", "wanted one value"}, [] { parsed({"a", "b", "--seed"}); });
  expect_error(ErrorCode::kUsage, {"--seed", "2 times"}, [] { parsed({"a", "b", "--seed", "1", "--seed", "2"}); });
}

TEST_F(Config, LiesBetweenDefaultsAndFlags) {
  const auto path = write(
      "model = \"m\"\nseed = 7\nlayers = 5\nnames = [\"x\", \"y\"]\nresume = true\n[optimizer]\nrate = 0.5\n"
      "[[growth]]\nat = 1\n[[growth]]\nat = 2\n");
  const auto o = parsed({"--config", path, "a", "b", "--seed", "9", "--names", "z"});
  EXPECT_EQ(o.seed, 9U);
  EXPECT_EQ(o.layers, 5);
  EXPECT_EQ(o.model, "a");
  EXPECT_EQ(o.names, (std::vector<std::string>{"z"}));
  EXPECT_TRUE(o.resume);
  EXPECT_EQ(o.rate, 0.5);
  EXPECT_EQ(o.growth.items().size(), 2U);
}

TEST_F(Config, GivesOperandsToo) {
  const auto path = write("model = \"m\"\nout = \"o\"\n");
  const auto o = parsed({"--config", path});
  EXPECT_EQ(o.model, "m");
  EXPECT_EQ(o.out, "o");
}

TEST_F(Config, ErrorsNameFileAndEveryUnknownKey) {
  const auto unknown = write("sead = 1\n[optimizer]\nrat = 1.0\n");
  expect_error(ErrorCode::kUsage,
               {"run.toml", "'sead'; did you mean 'seed'?", "'optimizer.rat'; did you mean 'optimizer.rate'?"},
               [&] { parsed({"--config", unknown, "a", "b"}); });
  const auto wrong = write("seed = \"x\"\n");
  expect_error(ErrorCode::kUsage, {"run.toml: seed", "'x'"}, [&] { parsed({"--config", wrong, "a", "b"}); });
  const auto list = write("seed = [1]\n");
  expect_error(ErrorCode::kUsage, {"run.toml: seed", "an array"}, [&] { parsed({"--config", list, "a", "b"}); });
  expect_error(ErrorCode::kNotFound, {"none.toml"}, [&] { parsed({"--config", "none.toml", "a", "b"}); });
}

TEST_F(Config, IsWhatTheResolvedSettingsAreWrittenAs) {
  const auto before = parsed({"a b", "o\"ut", "--seed", "18446744073709551615", "--names", "x", "y", "--optimizer.rate",
                              "1e-300", "--resume", "--experts", "4x", "--growth", R"([{"at": 1}, {"at": 2}])"});
  const std::string text = to_toml(before);
  GrowOptions after;
  read_toml(after, write(text));
  EXPECT_EQ(after.model, before.model);
  EXPECT_EQ(after.out, before.out);
  EXPECT_EQ(after.seed, before.seed);
  EXPECT_EQ(after.names, before.names);
  EXPECT_EQ(after.rate, before.rate);
  EXPECT_EQ(after.experts.value, 4);
  EXPECT_FALSE(after.select.has_value());
  EXPECT_TRUE(after.resume);
  EXPECT_EQ(after.growth, before.growth);
  EXPECT_EQ(to_toml(after), text);
}

TEST(Parse, GivesTheOperandsAfterAListTheirShare) {
  using Paths = std::vector<std::filesystem::path>;
  EXPECT_EQ(parsed<ManyThenOneOptions>({"a", "b"}).inputs, Paths{"a"});
  const auto many = parsed<ManyThenOneOptions>({"a", "b", "c"});
  EXPECT_EQ(many.inputs, (Paths{"a", "b"}));
  EXPECT_EQ(many.out, "c");
  expect_error(ErrorCode::kUsage, {"OUT", "missing"}, [] { parsed<ManyThenOneOptions>({"a"}); });
}

struct CountingOptions {
  int64_t a = 1, b = 2;
  bool on = false;
  Given given;
  static constexpr auto fields() {
    using O = CountingOptions;
    return std::tuple{field("a", &O::a, ""), field("t.b", &O::b, ""), field("on", &O::on, "")};
  }
};

TEST(GivenOptions, CountFlagsWhateverTheirValue) {
  const auto o = parsed<CountingOptions>({"--a", "1"});
  EXPECT_TRUE(o.given.has("a"));
  EXPECT_FALSE(o.given.has("t.b"));
  EXPECT_FALSE(o.given.has("on"));
}

// A run saves all its settings; read back, only those that somebody chose were given.
TEST_F(Config, GivesWhatIsNotTheDefault) {
  CountingOptions o;
  o.b = 5;
  const auto path = write(to_toml(o));
  const auto back = parsed<CountingOptions>({"--config", path});
  EXPECT_FALSE(back.given.has("a"));
  EXPECT_TRUE(back.given.has("t.b"));
  EXPECT_TRUE(parsed<CountingOptions>({"--config", path, "--on"}).given.has("on"));
  EXPECT_FALSE(parsed<CountingOptions>({"--config", path, "--t.b", "2"}).given.has("t.b")) << "the default again";
  CountingOptions read;
  read_toml(read, path);
  EXPECT_TRUE(read.given.has("t.b"));
}

TEST(GivenOptions, AreRefusedWhereTheyHaveNoEffect) {
  const auto check = [](std::initializer_list<std::string_view> args, bool when) {
    refuse_without_effect(parsed<CountingOptions>(args).given, {{false, "never", {"a"}}, {when, "of b", {"a", "t.b"}}});
  };
  check({"--a", "1"}, false);
  check({"--on"}, true);
  expect_error(ErrorCode::kUsage, {"--t.b: it has no effect here; of b (leave it out)"},
               [&] { check({"--t.b", "2"}, true); });
}

TEST(Help, ListsEveryOptionWithItsDefault) {
  ::testing::internal::CaptureStdout();
  EXPECT_THROW(parsed({"--help"}), HelpShown);
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), R"(coppice grow: grows

usage: coppice grow [options] MODEL OUT

operands
  MODEL                 source folder
  OUT                   target folder

options [default]
  --experts TEXT        number of experts afterwards [2x]
  --names TEXT ...      some names
  --data.weights X ...  shares
  --select TEXT         how parents are chosen
  --seed N              RNG seed [0]
  --layers N            a count [-1]
  --optimizer.rate X    learning rate [1e-05]
  --resume              go on [false]
  --growth JSON         growth steps

common options
  --config FILE.toml    read options from this file; flags on the command line override it
  --quiet               print no progress and no log lines on stderr, only warnings and errors
  --help                print this and do nothing
)");
}

}  // namespace
}  // namespace coppice
