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
  page.chart(LineChart{.title = "</script><b>", .series = {{.name = "s", .x = {1}, .y = {2}}}});
  EXPECT_THAT(page.html(), HasSubstr("<\\/script><b>"));
}

TEST(PageChart, LeavesGapsForMissingValues) {
  Page page("t");
  page.chart(LineChart{.title = "t", .series = {{.name = "s", .x = {1, 2}, .y = {NAN, 0.5}}}});
  EXPECT_THAT(page.html(), HasSubstr("\"y\": [null, 0.5]"));
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
  EXPECT_THAT(html, HasSubstr("<caption>caption</caption>"));
}

}  // namespace
}  // namespace coppice::report
