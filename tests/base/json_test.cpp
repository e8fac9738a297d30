#include "coppice/base/json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice {
namespace {

using testing::expect_error;

Json parsed(std::string_view text) { return Json::parse(text, "x.json"); }

TEST(JsonParse, KeepsTheOrderOfKeysAndTheTextOfNumbers) {
  const std::string text = R"({"z": 1e-05, "a": [1, -2.50, 1E5, 0.1], "m": {"t": true, "n": null}, "s": "x"})";
  EXPECT_EQ(parsed(text).dump(), text);
}

TEST(JsonParse, TakesPythonsBareNanAndInfinityAndWritesThemBack) {
  const std::string text = R"({"a": NaN, "b": [Infinity, -Infinity, 1.5, -Infinity], "NaN": "NaN, \"Infinity"})";
  const Json json = parsed(text);
  EXPECT_TRUE(std::isnan(json.at("a").as_double()));
  EXPECT_EQ(json.at("b").items()[0].as_double(), std::numeric_limits<double>::infinity());
  EXPECT_EQ(json.at("b").items()[1].as_double(), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(json.at("b").items()[2].as_double(), 1.5);
  EXPECT_EQ(json.at("NaN").as_string(), "NaN, \"Infinity");
  EXPECT_EQ(json.dump(), text);
  EXPECT_EQ(json, parsed(text));
}

TEST(JsonParse, TakesABareLiteralAlone) {
  EXPECT_TRUE(std::isnan(parsed("NaN").as_double()));
  EXPECT_EQ(parsed(" -Infinity ").dump(), "-Infinity");
}

TEST(JsonParse, KeepsIntegersExactly) {
  EXPECT_EQ(parsed("9223372036854775807").as_int(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(parsed("-9223372036854775808").as_int(), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(parsed("18446744073709551615").dump(), "18446744073709551615");
  EXPECT_EQ(parsed("123456789012345678901234567890").dump(), "123456789012345678901234567890");
}

TEST(JsonParse, DecodesEscapes) {
  EXPECT_EQ(parsed(R"("\u00e9\n\ud83c\udf33\/")").as_string(), "\xC3\xA9\n\xF0\x9F\x8C\xB3/");
}

TEST(JsonParse, NamesSourceLineAndColumnOfASyntaxError) {
  expect_error(ErrorCode::kFormat, {"x.json: line 2, column 8: is no JSON"}, [] { (void)parsed("{\n  \"a\": ]\n}"); });
  expect_error(ErrorCode::kFormat, {"x.json: line 1, column 1"}, [] { (void)parsed(""); });
}

TEST(JsonParse, NamesAKeyThatAppearsTwice) {
  expect_error(ErrorCode::kFormat, {"x.json", "'top_k'", "twice"},
               [] { (void)parsed(R"({"o": {"top_k": 1, "b": 2, "top_k": 3}})"); });
  EXPECT_NO_THROW((void)parsed(R"([{"a": 1}, {"a": 1}])"));
}

TEST(JsonParse, RefusesNestingOver64Levels) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW((void)parsed(nested(64)));
  expect_error(ErrorCode::kFormat, {"x.json", "64 levels"}, [&] { (void)parsed(nested(65)); });
  expect_error(ErrorCode::kFormat, {"x.json", "64 levels"}, [&] { (void)parsed(std::string(1000000, '[')); });
}

TEST(JsonParse, RefusesWhatIsNoJson) {
  for (const char* text : {"{",
                           "[1,]",
                           "{\"a\" 1}",
                           "{a: 1}",
                           "'a'",
                           "\"a",
                           "\"\\x\"",
                           "\"\\ud83c\"",
                           "\"\n\"",
                           "01",
                           "1.",
                           ".5",
                           "+1",
                           "nan",
                           "nul",
                           "Infinit",
                           "+Infinity",
                           "NaNN",
                           "--Infinity",
                           "1e999",
                           "-1e999",
                           "[1] 2",
                           "\"\xff\"",
                           "\"\xc0\xaf\"",
                           "\"\xed\xa0\x80\"",
                           "{\"a\":NaN,}",
                           "// c\n1",
                           "\xff",
                           "[1 NaN]",
                           "\"\\"}) {
    SCOPED_TRACE(text);
    expect_error(ErrorCode::kFormat, {"x.json"}, [&] { (void)parsed(text); });
  }
}

// Every cut and many mutations of a real configuration: a value or Error{kFormat}, and a value survives being written.
TEST(JsonParse, SurvivesCutAndDamagedInput) {
  const std::string good =
      R"({"architectures": ["X"], "eps": 1e-05, "n": -12, "big": 1e308, "inf": Infinity, "o": {"a": [true, null, NaN]}, "s": "\u00e9\"q"})";
  uint64_t state = 1;
  const auto draw = [&state](size_t n) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return static_cast<size_t>(state >> 33) % n;
  };
  const std::string_view alphabet = "{}[]\",:\\0123eE+-.nNaIutf \x01\xff";
  for (size_t i = 0; i < 20000; ++i) {
    std::string text = good;
    if (i < text.size()) {
      text.resize(i);
    } else {
      for (size_t k = draw(4) + 1; k > 0; --k) text[draw(text.size())] = alphabet[draw(alphabet.size())];
    }
    try {
      const Json json = parsed(text);
      EXPECT_EQ(parsed(json.dump()), json) << text;
    } catch (const Error& e) {
      EXPECT_EQ(e.code, ErrorCode::kFormat) << text;
    }
  }
}

TEST(JsonParse, KeepsMessagesShortWhateverTheInput) {
  try {
    (void)parsed("[" + std::string(100000, 'x'));
    FAIL();
  } catch (const Error& e) {
    EXPECT_LT(std::string_view(e.what()).size(), 400U);
  }
}

TEST(JsonDump, LaysOutAsPython) {
  const Json json = parsed(R"({"a": [1, [], {}], "b": {"c": "d"}})");
  EXPECT_EQ(json.dump(2), "{\n  \"a\": [\n    1,\n    [],\n    {}\n  ],\n  \"b\": {\n    \"c\": \"d\"\n  }\n}");
  EXPECT_EQ(json.dump(), R"({"a": [1, [], {}], "b": {"c": "d"}})");
}

TEST(JsonDump, EscapesControlCharactersAndLeavesUnicode) {
  EXPECT_EQ(Json("\x01\x1f\b\f\n\r\t\"\\/\x7f\xC3\xA9").dump(),
            "\"\\u0001\\u001f\\b\\f\\n\\r\\t\\\"\\\\/\x7f\xC3\xA9\"");
}

TEST(JsonDump, WritesDoublesThatStayDoubles) {
  EXPECT_EQ(Json(1.0).dump(), "1.0");
  EXPECT_EQ(Json(0.1).dump(), "0.1");
  EXPECT_EQ(Json(1e22).dump(), "1e+22");
  EXPECT_EQ(Json(std::nan("")).dump(), "NaN");
  EXPECT_EQ(Json(-std::numeric_limits<double>::infinity()).dump(), "-Infinity");
}

TEST(JsonValue, ComesFromAnyWidthOfInteger) {
  EXPECT_EQ(Json(uint32_t{4294967295U}).as_int(), 4294967295);
  EXPECT_EQ(Json(size_t{7}).as_int(), 7);
  EXPECT_EQ(Json(int16_t{-7}).as_int(), -7);
  EXPECT_EQ(Json::array_of(std::vector<uint32_t>{1, 2}).dump(), "[1, 2]");
  EXPECT_EQ(Json(true).kind(), Json::Kind::kBool);
  EXPECT_EQ(Json("text").kind(), Json::Kind::kString);
}

TEST(JsonValue, IsBuiltAndChangedByKey) {
  Json json;
  json["b"] = 1;
  json["a"]["deep"] = "x";
  json["list"].push_back(2.5);
  json["b"] = 3;
  EXPECT_EQ(json.dump(), R"({"b": 3, "a": {"deep": "x"}, "list": [2.5]})");
  EXPECT_TRUE(json.erase("a"));
  EXPECT_FALSE(json.erase("a"));
  EXPECT_EQ(json.find("a"), nullptr);
  EXPECT_EQ(json.find("b")->as_int(), 3);
}

TEST(JsonValue, SaysWhatItFoundAndWhatWasWanted) {
  expect_error(ErrorCode::kFormat, {"found a text", "wanted an integer"}, [] { (void)Json("7").as_int(); });
  expect_error(ErrorCode::kFormat, {"found 1.5", "integer"}, [] { (void)Json(1.5).as_int(); });
  expect_error(ErrorCode::kFormat, {"18446744073709551615"}, [] { (void)Json(uint64_t(-1)).as_int(); });
  expect_error(ErrorCode::kFormat, {"'k'", "missing"}, [] { (void)Json::object().at("k"); });
  expect_error(ErrorCode::kFormat, {"found an array", "'k'"}, [] { (void)Json::array().at("k"); });
  expect_error(ErrorCode::kFormat, {"found an integer"}, [] { Json(1)["k"] = 2; });
  EXPECT_EQ(Json(3.0).as_int(), 3);
  EXPECT_EQ(Json(3).as_double(), 3.0);
}

TEST(JsonValue, ComparesByValueAndOrder) {
  EXPECT_EQ(parsed("1e-05"), Json(0.00001));
  EXPECT_EQ(parsed("[NaN]"), parsed("[NaN]"));
  EXPECT_NE(parsed(R"({"a": 1, "b": 2})"), parsed(R"({"b": 2, "a": 1})"));
  EXPECT_NE(Json(1), Json(1.0));
}

TEST(JsonRead, NamesTheFile) {
  const testing::TempDir dir;
  const auto path = dir / "config.json";
  expect_error(ErrorCode::kNotFound, {"config.json", "no such file"}, [&] { (void)Json::read(path); });
  expect_error(ErrorCode::kIo, {"directory"}, [&] { (void)Json::read(dir.path()); });
  std::ofstream(path) << R"({"a": 1})";
  EXPECT_EQ(Json::read(path).at("a").as_int(), 1);
  expect_error(ErrorCode::kFormat, {"config.json", "longer than 7 bytes"}, [&] { (void)Json::read(path, 7); });
}

}  // namespace
}  // namespace coppice
