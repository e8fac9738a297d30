#include "coppice/base/json_reader.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice {
namespace {

using testing::expect_error;

JsonReader parsed(std::string_view text) { return JsonReader::parse(text, "x.json:7"); }

TEST(JsonReader, ReadsAsJsonDoes) {
  const JsonReader json = parsed(R"({"a": [1, 2.5, true, "s"], "o": {"k": null}})");
  const auto items = json.at("a").items();
  EXPECT_EQ(items[0].as_int(), 1);
  EXPECT_EQ(items[1].as_double(), 2.5);
  EXPECT_TRUE(items[2].as_bool());
  EXPECT_EQ(items[3].as_string(), "s");
  EXPECT_EQ(json.members()[1].first, "o");
  EXPECT_TRUE(json.find("o")->at("k").json().is_null());
  EXPECT_FALSE(json.find("b"));
  EXPECT_FALSE(items[0].find("b"));
  EXPECT_EQ(items[0].integer(1, 1), 1);
}

TEST(JsonReader, OutlivesTheDocumentItCameFrom) {
  const JsonReader inner = parsed(R"({"a": {"b": ["x"]}})").at("a").at("b").items()[0];
  EXPECT_EQ(inner.as_string(), "x");
  expect_error(ErrorCode::kFormat, {"x.json:7: a.b[0]: found a text; wanted an integer"},
               [&] { (void)inner.as_int(); });
}

TEST(JsonReader, NamesSourceAndPathOfWhatIsWrong) {
  const JsonReader json = parsed(R"({"a": [{"n": "7"}, {"n": 1e300}], "b": {"c": 3}})");
  const auto items = json.at("a").items();
  const JsonReader text = items[0].at("n"), large = items[1].at("n"), three = json.at("b").at("c");
  expect_error(ErrorCode::kFormat, {"x.json:7: a[0].n: found a text; wanted a number"},
               [&] { (void)text.as_double(); });
  expect_error(ErrorCode::kFormat, {"x.json:7: a[1].n: found 1e300; wanted an integer"}, [&] { (void)large.as_int(); });
  expect_error(ErrorCode::kFormat, {"x.json:7: b.c: found 3; wanted an integer from 4 to 5"},
               [&] { (void)three.integer(4, 5); });
  expect_error(ErrorCode::kFormat, {"x.json:7: b.c: found an integer; wanted an array"}, [&] { (void)three.items(); });
  expect_error(ErrorCode::kFormat, {"x.json:7: b.c: found an integer; wanted an object"},
               [&] { (void)three.members(); });
  expect_error(ErrorCode::kFormat, {"x.json:7: b: the key 'd' is missing"}, [&] { (void)json.at("b").at("d"); });
  expect_error(ErrorCode::kFormat, {"x.json:7: the key 'd' is missing"}, [&] { (void)json.at("d"); });
  expect_error(ErrorCode::kFormat, {"x.json:7: found an object; wanted true or false"}, [&] { (void)json.as_bool(); });
}

TEST(JsonReader, NamesTheFileItRead) {
  const testing::TempDir dir;
  std::ofstream(dir / "a.json") << R"({"n": []})";
  const JsonReader n = JsonReader::read(dir / "a.json").at("n");
  const std::string place = (dir / "a.json").string() + ": n: found an array";
  expect_error(ErrorCode::kFormat, {place.c_str()}, [&] { (void)n.as_string(); });
}

}  // namespace
}  // namespace coppice
