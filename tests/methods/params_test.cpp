#include "coppice/methods/params.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"
#include "tests/testing/errors.h"

namespace coppice::methods {
namespace {

using testing::expect_error;

constexpr ParamSpec kSpecs[] = {
    {.key = "lambda", .fallback = 0.01, .lo = 0, .hi = 1, .help = "noise"},
    {.key = "gaussian", .fallback = 0, .lo = 0, .hi = 1, .help = "kind", .is_switch = true}};

TEST(Params, HoldsGivenValuesAndFallbacks) {
  const Params params("m", kSpecs, {{"lambda", 0.5}});
  EXPECT_EQ(params.get("lambda"), 0.5);
  EXPECT_EQ(params.get("gaussian"), 0);
  EXPECT_EQ(params.values().size(), 2u);
}

TEST(Params, NamesTheNearestKeyForAnUnknownOne) {
  expect_error(ErrorCode::kUsage, {"copy_noise", "'lamda'", "'lambda'"},
               [] { Params("copy_noise", kSpecs, {{"lamda", 0.5}}); });
  expect_error(ErrorCode::kUsage, {"'x'", "has no parameters"}, [] { Params("copy", {}, {{"x", 1}}); });
}

TEST(Params, RefusesValuesOutOfRange) {
  for (const double value : {-0.1, 1.5, std::nan(""), std::numeric_limits<double>::infinity()}) {
    SCOPED_TRACE(value);
    expect_error(ErrorCode::kUsage, {"'lambda'"}, [&] { Params("m", kSpecs, {{"lambda", value}}); });
  }
  expect_error(ErrorCode::kUsage, {"0 or 1"}, [] { Params("m", kSpecs, {{"gaussian", 0.5}}); });
}

TEST(Params, UnknownKeyInsideCoppiceIsABug) {
  expect_error(ErrorCode::kInternal, {"'x'"}, [] { Params("m", kSpecs, {}).get("x"); });
}

TEST(Params, FallbackOfEveryMethodIsInItsOwnRange) {
  const auto check = [](const auto& table) {
    for (const auto& row : table) {
      for (const ParamSpec& spec : row.params) {
        SCOPED_TRACE(std::string(row.name) + "." + std::string(spec.key));
        EXPECT_NO_THROW(Params(row.name, row.params, {{std::string(spec.key), spec.fallback}}));
        EXPECT_FALSE(spec.help.empty());
      }
      EXPECT_FALSE(row.summary.empty()) << row.name;
      EXPECT_FALSE(row.source.empty()) << row.name;
    }
  };
  check(expert_inits());
  check(router_inits());
  check(optimizer_inits());
}

TEST(MethodChoiceText, ReadsNameAndParameters) {
  EXPECT_EQ(MethodChoice::from_text("copy"), (MethodChoice{"copy", {}}));
  EXPECT_EQ(MethodChoice::from_text("copy_noise:lambda=0.02,other=1"),
            (MethodChoice{"copy_noise", {{"lambda", 0.02}, {"other", 1}}}));
  EXPECT_EQ(MethodChoice::from_text("m:a=-1e-3").given.at("a"), -1e-3);
}

TEST(MethodChoiceText, RoundTripsExactly) {
  for (const double value : {0.1, 1.0 / 3.0, 1e-300, 12345678.9, -0.0, 5e-324}) {
    const MethodChoice choice{"m", {{"a", value}, {"b", 2}}};
    EXPECT_EQ(MethodChoice::from_text(choice.to_text()), choice) << choice.to_text();
  }
  EXPECT_EQ(MethodChoice::from_text("copy").to_text(), "copy");
}

TEST(MethodChoiceText, RefusesNonsense) {
  for (const char* text : {"", ":a=1", "m:", "m:a", "m:=1", "m:a=", "m:a=x", "m:a=1x", "m:a=nan", "m:a=inf", "m:a=1,",
                           "m:a=1,a=2", "m=1", "m:a=1;b=2", "m:a= 1"}) {
    SCOPED_TRACE(text);
    expect_error(ErrorCode::kUsage, {}, [&] { (void)MethodChoice::from_text(text); });
  }
}

}  // namespace
}  // namespace coppice::methods
