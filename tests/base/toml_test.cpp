#include "coppice/base/toml.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice {
namespace {

class TomlFile : public ::testing::Test {
 protected:
  std::filesystem::path write(std::string_view text) {
    std::ofstream(dir_ / "run.toml", std::ios::binary) << text;
    return dir_ / "run.toml";
  }
  testing::TempDir dir_;
};

TEST_F(TomlFile, BecomesObjectsAndArrays) {
  const Json json =
      read_toml(write("a = 1\nlr = 1e-05\n[train]\nseed = -3\nout = \"x\"\non = true\n"
                      "[[growth]]\nat_step = 100\n[[growth]]\nat_step = 200\nlayers = [1, 2]\n"));
  EXPECT_EQ(json.at("a").as_int(), 1);
  EXPECT_EQ(json.at("lr").as_double(), 1e-5);
  EXPECT_EQ(json.at("train").at("seed").as_int(), -3);
  EXPECT_TRUE(json.at("train").at("on").as_bool());
  ASSERT_EQ(json.at("growth").items().size(), 2U);
  EXPECT_EQ(json.at("growth").items()[1].at("layers").dump(), "[1, 2]");
}

TEST_F(TomlFile, ErrorsNameFileLineAndColumn) {
  testing::expect_error(ErrorCode::kFormat, {"run.toml: line 2, column", "is not valid TOML"},
                        [&] { (void)read_toml(write("a = 1\nb = = 2\n")); });
  testing::expect_error(ErrorCode::kFormat, {"run.toml: line 2"}, [&] { (void)read_toml(write("a = 1\na = 2\n")); });
  testing::expect_error(ErrorCode::kFormat, {"run.toml: line 1", "date"},
                        [&] { (void)read_toml(write("d = 2024-01-01\n")); });
  testing::expect_error(ErrorCode::kNotFound, {"none.toml"}, [&] { (void)read_toml(dir_ / "none.toml"); });
}

TEST_F(TomlFile, ThatIsHostileIsAnError) {
  for (const std::string& text : {std::string("a = \"\xff\""), std::string("a = ") + std::string(100000, '['),
                                  std::string("a = 99999999999999999999"), std::string("\0\0", 2), std::string("[a\n"),
                                  std::string("a = \"\n\"")}) {
    testing::expect_error(ErrorCode::kFormat, {"run.toml"}, [&] { (void)read_toml(write(text)); });
  }
}

TEST_F(TomlFile, HoldsWhatWasWritten) {
  Json json = Json::object();
  json["text"] = "quote \" backslash \\ newline \n tab \t bell \x07 delete \x7f \xC3\xA9";
  json["odd key."] = 1.0;
  json["small"] = 1e-300;
  json["limits"] = Json::array({Json(std::numeric_limits<int64_t>::min()), Json(std::numeric_limits<int64_t>::max())});
  json["nothing"] = Json();
  json["infinite"] = -std::numeric_limits<double>::infinity();
  json["empty"] = Json::array();
  json["growth"] = Json::array(
      {Json::object({{"at_step", 1}, {"deep", Json::object({{"x", true}})}}), Json::object({{"at_step", 2}})});
  json["section"] = Json::object({{"a", 1}, {"sub", Json::object({{"b", Json::array({Json("x"), Json("y")})}})}});
  const Json back = read_toml(write(toml_text(json)));
  EXPECT_EQ(back.find("nothing"), nullptr);
  EXPECT_EQ(back.members().size(), json.members().size() - 1);
  for (const auto& [key, value] : back.members()) EXPECT_EQ(value, json.at(key)) << key;
}

TEST_F(TomlFile, HasScalarsThenTablesThenArraysOfTables) {
  Json json = Json::object();
  json["growth"] = Json::array({Json::object({{"at", 1}})});
  json["t"] = Json::object({{"x", 2.5}});
  json["a"] = "b";
  EXPECT_EQ(toml_text(json), "a = \"b\"\n\n[t]\nx = 2.5\n\n[[growth]]\nat = 1\n");
}

TEST_F(TomlFile, KeepsNanAndLargeUnsignedIntegers) {
  const Json json = Json::object({{"nan", std::nan("")}, {"seed", std::numeric_limits<uint64_t>::max()}});
  const Json back = read_toml(write(toml_text(json)));
  EXPECT_TRUE(std::isnan(back.at("nan").as_double()));
  EXPECT_EQ(back.at("seed").as_string(), "18446744073709551615");  // TOML has 64 signed bits; options read text
}

}  // namespace
}  // namespace coppice
