#include "coppice/report/html.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace coppice::report {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(PageText, IsEscaped) {
  Page page("a < b");
  page.paragraph("<script>alert(1)</script> & \"more\"");
  page.preformatted("x<y");
  const auto html = page.html();
  EXPECT_THAT(html, HasSubstr("<title>a &lt; b</title>"));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;more&quot;"));
  EXPECT_THAT(html, HasSubstr("<pre>x&lt;y</pre>"));
}

TEST(PageChart, CannotEndItsScriptElement) {
  Page page("t");
  page.chart(LineChart{.title = "</script><b> a<!--<script>b \u2028\u2029 \u2027",
                       .series = {{.name = "s", .x = {1}, .y = {2}}}});
  EXPECT_THAT(page.html(), HasSubstr("\\u003c/script>\\u003cb> a\\u003c!--\\u003cscript>b \\u2028\\u2029 \u2027"));
  EXPECT_THAT(page.html(), Not(HasSubstr("<!--<script>b")));
}

TEST(PageChart, LeavesGapsForMissingValues) {
  Page page("t");
  page.chart(LineChart{.title = "t", .series = {{.name = "s", .x = {1, 2}, .y = {NAN, 0.5}}}});
  EXPECT_THAT(page.html(), HasSubstr("\"y\": [null, 0.5]"));
}

TEST(FigureOfHeatMap, HasOneInThePapersColour) {
  const auto made = figure(HeatMap{.x = {"0", "1"}, .y = {"a"}, .values = {{0.5, 4}}, .around_one = true});
  const Json& map = made.data.items().front();
  EXPECT_EQ(map.at("zmax").as_double(), 4);
  EXPECT_EQ(map.at("colorscale").items()[2], Json::array({Json(0.25), Json("@div2")}));
}

TEST(FigureOfLines, GroupsShareALineOfTheLegend) {
  const auto made = figure(LineChart{
      .series = {{.name = "a", .x = {1}, .y = {1}, .group = "g"}, {.name = "b", .x = {1}, .y = {1}, .group = "g"}}});
  EXPECT_TRUE(made.data.items()[0].at("showlegend").as_bool());
  EXPECT_FALSE(made.data.items()[1].at("showlegend").as_bool());
}

TEST(PageViews, AreEscapedAndPickedByLabel) {
  Page page("t");
  page.views({{"<a>", figure(LineChart{.title = "<b>"})}, {"c", figure(LineChart{})}}, "<i>", "by");
  const auto html = page.html();
  EXPECT_THAT(html, HasSubstr("<h3>&lt;b&gt;</h3>"));
  EXPECT_THAT(html, HasSubstr("<figcaption>&lt;i&gt;</figcaption>"));
  EXPECT_THAT(html, HasSubstr("class=\"pick\""));
}

TEST(PageHtml, IsSelfContained) {
  const auto html = Page("t").html();
  EXPECT_GT(html.size(), 1'000'000u) << "plotly.min.js is missing";
  EXPECT_THAT(html, Not(HasSubstr("<script src")));
  EXPECT_THAT(html, Not(HasSubstr("<link rel=\"stylesheet\"")));
}

TEST(TableText, AlignsNumbersRightAndWordsLeft) {
  const Table table{.header = {"name", "loss"}, .rows = {{"a", "1.25"}, {"länger", "10.5"}}};
  EXPECT_EQ(text_table(table),
            "name    loss\n"
            "------  ----\n"
            "a       1.25\n"
            "länger  10.5\n");
}

TEST(TableHtml, MarksNumberColumnsOnly) {
  Page page("t");
  page.table({.header = {"word", "value"}, .rows = {{"3 apples and x", "12 %"}, {"b", "-"}}}, "caption");
  const auto html = page.html();
  EXPECT_THAT(html, HasSubstr("<td class=\"number\">12 %</td>"));
  EXPECT_THAT(html, HasSubstr("<td>b</td>"));
  EXPECT_THAT(html, HasSubstr("<p class=\"caption\">caption</p>"));
}

}  // namespace
}  // namespace coppice::report
