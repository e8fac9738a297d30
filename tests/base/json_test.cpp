#include "coppice/base/json.h"

#include <gtest/gtest.h>
#include <malloc.h>

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
  expect_error(ErrorCode::kFormat, {"x.json: line 2, column 8: is not valid JSON"},
               [] { (void)parsed("{\n  \"a\": ]\n}"); });
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
                           "\"\\ude00\"",
                           "{\"\\udc00\": 1}",
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

/// Bytes of the heap that are taken while the document is held.
uint64_t bytes_held_for(std::string_view text) {
  const auto taken = [] {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const uint64_t before = taken();
  const Json json = parsed(text);
  return taken() - before;
}

std::string repeated(std::string_view item, size_t bytes) {
  std::string text = "[";
  while (text.size() < bytes) text.append(item).append(",");
  return text.append("0]");
}

TEST(JsonParse, TakesMemoryInProportionToTheText) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer has its own heap";
#endif
  for (const char* item :
       {"0", "-1", "1.5", "1e-05", "0.12345678901234567", "true", "null", "\"\"", "\"a\"", "[]", "{}", "[0]", "[[]]",
        "{\"\":0}", "{\"a\":{}}", "\"a name of 50 letters, as tensors have them in fact\""}) {
    SCOPED_TRACE(item);
    const std::string text = repeated(item, size_t{1} << 20);
    EXPECT_LE(bytes_held_for(text), 24 * text.size());
  }
}

TEST(JsonParse, RefusesMoreValuesThanAllowed) {
  const JsonLimits limits{.values = 100};
  EXPECT_NO_THROW((void)Json::parse(repeated("0", 150), "x.json", limits));
  for (const char* item : {"0", "[]", "{}", "\"\"", "null"}) {
    SCOPED_TRACE(item);
    expect_error(ErrorCode::kFormat, {"x.json: line 1, column ", "over 100 values"},
                 [&] { (void)Json::parse(repeated(item, 2000), "x.json", limits); });
  }
}

TEST(JsonParse, KeepsEveryNumberAsItIsWritten) {
  const std::string text = "[-0, 0, -0.0, 1E+2, 1e-400, 100000000000000000000, -9223372036854775809, 0.10]";
  EXPECT_EQ(parsed(text).dump(), text);
  EXPECT_EQ(parsed("-0").as_int(), 0);
  EXPECT_EQ(parsed("1e-400").as_double(), 0.0);
  for (const char* number : {"Inf", "-Inf", "-NaN", "1e400", "-1e400"}) {
    SCOPED_TRACE(number);
    expect_error(ErrorCode::kFormat, {"x.json: line 1"}, [&] { (void)parsed(number); });
  }
}

TEST(JsonParse, RefusesAZeroByte) {
  using namespace std::literals;
  for (const std::string_view text : {"[1]\0"sv, "\0[1]"sv, "[1\0]"sv, "\"a\0\""sv}) {
    expect_error(ErrorCode::kFormat, {"x.json: line 1"}, [&] { (void)parsed(text); });
  }
  EXPECT_EQ(parsed(R"("a\u0000b")").as_string(), "a\0b"sv);
}

/// The members that each_member passes: "key=value".
std::vector<std::string> members_in(std::string_view text, std::string_view inside) {
  std::vector<std::string> members;
  const bool found = Json::each_member(text, "x.json", inside, 10, [&](std::string_view key, const Json& value) {
    members.push_back(std::string(key) + "=" + value.dump());
  });
  if (!found) members.emplace_back("none");
  return members;
}

TEST(JsonEachMember, PassesOneAfterTheOther) {
  using Members = std::vector<std::string>;
  const char* text =
      R"({"a": 1, "m": {"x": [1, {"y": 2}], "z": {}, "z": "s"}, "b": [{"m": 1}, []], "c": {"m": {"n": 1}}})";
  EXPECT_EQ(members_in(text, "m"), (Members{R"(x=[1, {"y": 2}])", "z={}", R"(z="s")"}));
  EXPECT_EQ(members_in(R"({"a": 1, "b": [{}, [2]], "a": null})", ""), (Members{"a=1", "b=[{}, [2]]", "a=null"}));
  EXPECT_EQ(members_in("{}", ""), Members{});
  for (const char* without : {R"({"a": {"m": {"n": 1}}})", R"({"m": [1]})", R"([{"m": {"n": 1}}, {"n": 1}])", "3"}) {
    EXPECT_EQ(members_in(without, "m"), Members{"none"}) << without;
  }
}

TEST(JsonEachMember, RefusesWhatParseRefuses) {
  expect_error(ErrorCode::kFormat, {"x.json: line 1, column 8"}, [] { (void)members_in(R"({"a": 1])", ""); });
  expect_error(ErrorCode::kFormat, {"'k'", "twice"}, [] { (void)members_in(R"({"a": {"k": 1, "k": 2}})", ""); });
  expect_error(ErrorCode::kFormat, {"'m'", "twice"}, [] { (void)members_in(R"({"m": {}, "m": {}})", "m"); });
  expect_error(ErrorCode::kFormat, {"over 10 values in one member"},
               [] { (void)members_in(R"({"a": 1, "b": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]})", ""); });
  const std::string deep(1000, '[');
  expect_error(ErrorCode::kFormat, {"64 levels"}, [&] { (void)members_in("{\"a\": " + deep, "m"); });
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
  expect_error(ErrorCode::kFormat, {"directory"}, [&] { (void)Json::read(dir.path()); });
  std::ofstream(path) << R"({"a": 1})";
  EXPECT_EQ(Json::read(path).at("a").as_int(), 1);
  expect_error(ErrorCode::kFormat, {"config.json", "longer than 7 bytes"},
               [&] { (void)Json::read(path, {.bytes = 7}); });
}

}  // namespace
}  // namespace coppice
