#include "coppice/base/text.h"

#include <gtest/gtest.h>

#include <bit>
#include <charconv>
#include <limits>

#include "coppice/base/check.h"
#include "tests/testing/errors.h"

namespace coppice {
namespace {

TEST(CatJoins, TextCharactersPathsAndNumbers) {
  const std::string s = "s";
  EXPECT_EQ(cat("a", s, std::string_view("v"), 'c', std::filesystem::path("p/q"), -3, uint64_t{18446744073709551615U}),
            "asvcp/q-318446744073709551615");
}

TEST(CatJoins, LiteralsAreNotTakenForBooleans) {
  const char* const pointer = "pointer";
  EXPECT_EQ(cat("literal ", pointer, " ", true, " ", false), "literal pointer true false");
}

TEST(CatJoins, DoublesAsPythonWritesThem) {
  EXPECT_EQ(cat(0.1), "0.1");
  EXPECT_EQ(cat(1e-4), "0.0001");
  EXPECT_EQ(cat(1e-5), "1e-05");
  EXPECT_EQ(cat(100000.0), "100000");
  EXPECT_EQ(cat(1e16), "1e+16");
  EXPECT_EQ(cat(-2.5), "-2.5");
  EXPECT_EQ(cat(0.1F), "0.1");
}

TEST(CatJoins, DoublesThatReadBackEqual) {
  uint64_t bits = 1;
  for (int i = 0; i < 20000; ++i) {
    bits = bits * 6364136223846793005U + 1442695040888963407U;
    const auto value = std::bit_cast<double>(bits);
    if (value != value) continue;
    const std::string text = cat(value);
    double back = 0;
    std::from_chars(text.data(), text.data() + text.size(), back);
    EXPECT_EQ(value, back) << text;
  }
}

TEST(JoinSome, NamesHowManyWereLeftOut) {
  const std::vector<std::string> parts = {"a", "b", "c", "d"};
  EXPECT_EQ(join(parts), "a, b, c, d");
  EXPECT_EQ(join_some(parts, 2), "a, b, ... (2 more)");
  EXPECT_EQ(join_some(parts, 0), "... (4 more)");
  EXPECT_EQ(join_some(parts, 4), "a, b, c, d");
  EXPECT_EQ(join({}), "");
}

TEST(TextShown, ActsOnNoTerminal) {
  EXPECT_EQ(shown("a b\u00e4\u4e2d\U0001f600"), "a b\u00e4\u4e2d\U0001f600");
  EXPECT_EQ(shown("a\x1b[2J\x07\x7f"), "a\\u001b[2J\\u0007\\u007f");
  EXPECT_EQ(shown(std::string_view("\0\r", 2)), "\\u0000\\u000d");
  EXPECT_EQ(shown("one\ntwo\t"), "one\\ntwo\\t");
  EXPECT_EQ(shown("\u0080\u009b31m\u009f\u00a0"), "\\u0080\\u009b31m\\u009f\u00a0");
  EXPECT_EQ(shown("\u202egnp.exe \u2066\u2069 \u200f \u061c \u2028"),
            "\\u202egnp.exe \\u2066\\u2069 \\u200f \\u061c \\u2028");
  EXPECT_EQ(shown("\x9b"
                  "2J \xc2 \xe2\x80 \xc0\x9b \xed\xa0\x80"),
            "\\udc9b"
            "2J \\udcc2 \\udce2\\udc80 \\udcc0\\udc9b \\udced\\udca0\\udc80");
  EXPECT_EQ(shown_lines("a\x1b\nb\n"), "a\\u001b\nb\n");
  EXPECT_EQ(shown(shown("a\nb\x1b\xff\u202e")), shown("a\nb\x1b\xff\u202e")) << "once is enough";
}

TEST(TextOf, Shapes) {
  EXPECT_EQ(shape_text(std::vector<int64_t>{2, 3}), "[2, 3]");
  EXPECT_EQ(shape_text({}), "[]");
}

TEST(TextOf, Bytes) {
  EXPECT_EQ(bytes_text(0), "0 bytes");
  EXPECT_EQ(bytes_text(1), "1 byte");
  EXPECT_EQ(bytes_text(7), "7 bytes");
  EXPECT_EQ(bytes_text(12 * 1024), "12 KiB");
  EXPECT_EQ(bytes_text(1024 * 1024 - 1), "1 MiB");
  EXPECT_EQ(bytes_text(uint64_t{3650} << 20), "3.6 GiB");
  EXPECT_EQ(bytes_text(std::numeric_limits<uint64_t>::max()), "16 EiB");
}

TEST(TextOf, Counts) {
  EXPECT_EQ(count_text(812), "812");
  EXPECT_EQ(count_text(57.3e6), "57.3 M");
  EXPECT_EQ(count_text(1.24e9), "1.24 B");
  EXPECT_EQ(count_text(999999), "1.00 M");
  EXPECT_EQ(count_text(0), "0");
}

TEST(TextOf, Durations) {
  EXPECT_EQ(duration_text(0.012), "12 ms");
  EXPECT_EQ(duration_text(8.1), "8.1 s");
  EXPECT_EQ(duration_text(59.96), "1 min 00 s");
  EXPECT_EQ(duration_text(252), "4 min 12 s");
  EXPECT_EQ(duration_text(7380), "2 h 03 min");
  EXPECT_EQ(duration_text(3599.7), "1 h 00 min");
  EXPECT_EQ(duration_text(std::numeric_limits<double>::infinity()), "unknown");
  EXPECT_EQ(duration_text(-1), "unknown");
}

TEST(TextOf, Numbers) {
  EXPECT_EQ(number_text(0.01234), "0.01234");
  EXPECT_EQ(number_text(1.2e-7, 2), "1.2e-07");
  EXPECT_EQ(number_text(1.0 / 3, 3), "0.333");
  EXPECT_EQ(fixed_text(3.14159, 2), "3.14");
  EXPECT_EQ(fixed_text(-0.004, 2), "0.00");
  EXPECT_EQ(fixed_text(-0.006, 2), "-0.01");
  EXPECT_EQ(fixed_text(1e300, 1).size(), 303U);
}

TEST(NearestFinds, ASlipOfTheFingers) {
  const std::vector<std::string> names = {"seed", "experts", "expert-init"};
  EXPECT_EQ(nearest("sede", names), "seed");  // swapped neighbours
  EXPECT_EQ(nearest("expert", names), "experts");
  EXPECT_EQ(nearest("expertinit", names), "expert-init");
}

TEST(NearestFinds, NothingAmongStrangers) {
  const std::vector<std::string> names = {"seed", "experts"};
  EXPECT_EQ(nearest("temperature", names), "");
  EXPECT_EQ(nearest("", names), "");
  EXPECT_EQ(suggestion("temperature", names), "; known: seed, experts");
  EXPECT_EQ(suggestion("seeds", names), "; did you mean 'seed'?");
  EXPECT_EQ(suggestion("seeds", {}), "");
}

TEST(SplitKeeps, EmptyParts) {
  EXPECT_EQ(split("a,,b,", ','), (std::vector<std::string>{"a", "", "b", ""}));
  EXPECT_EQ(split("", ','), (std::vector<std::string>{""}));
}

TEST(Check, NamesTheConditionAndThePlace) {
  const int layers = 3;
  EXPECT_NO_THROW(COPPICE_CHECK(layers == 3));
  testing::expect_error(ErrorCode::kInternal, {"text_test.cpp:", "layers == 4 does not hold", "layers 3", "a bug"},
                        [&] { COPPICE_CHECK(layers == 4, "layers ", layers); });
}

TEST(ExitStatus, BelongsToTheCode) {
  EXPECT_EQ(exit_status(ErrorCode::kCheckFailed), 1);
  EXPECT_EQ(exit_status(ErrorCode::kUsage), 2);
  EXPECT_EQ(exit_status(ErrorCode::kFormat), 3);
  EXPECT_EQ(exit_status(ErrorCode::kNonFinite), 3);
  EXPECT_EQ(exit_status(ErrorCode::kIo), 4);
  EXPECT_EQ(exit_status(ErrorCode::kInternal), 5);
}

}  // namespace
}  // namespace coppice
