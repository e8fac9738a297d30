#include "coppice/report/html.h"

#include <cstring>
#include <utility>

#include "coppice/base/text.h"
#include "coppice/base/version.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/output_place.h"
#include "coppice/report/page_script.h"
#include "coppice/report/page_style.h"
#include "coppice/report/table_detail.h"

extern "C" const char coppice_plotly_begin[];
extern "C" const char coppice_plotly_end[];

namespace coppice::report {
namespace {

constexpr std::string_view kDoctype = "<!DOCTYPE html>", kFooter = "<footer>Made by coppice ";
constexpr size_t kLongCell = 48;  // characters; longer ones wrap

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

// JSON inside a script element: no "<" may begin an end tag, a comment or another script there, and JavaScript of before
// 2019 ends a line at U+2028 and U+2029.
std::string script_json(const Json& value) {
  std::string out = value.dump();
  for (const auto& [found, written] : {std::pair{"<", "\\u003c"}, {"\u2028", "\\u2028"}, {"\u2029", "\\u2029"}}) {
    for (size_t at = 0; (at = out.find(found, at)) != std::string::npos; at += std::strlen(written))
      out.replace(at, std::strlen(found), written);
  }
  return out;
}

std::string tree_html(const std::vector<Tree>& nodes) {
  std::string out = "<ul>";
  for (const Tree& node : nodes) {
    out += cat("<li><span>", escaped(node.text), "</span>");
    if (!node.note.empty()) out += cat(" <small>", escaped(node.note), "</small>");
    if (!node.children.empty()) out += tree_html(node.children);
    out += "</li>\n";
  }
  return out + "</ul>";
}

}  // namespace

Page::Page(std::string title) : title_(std::move(title)) {}

void Page::heading(std::string_view text) {
  const std::string id = cat("section", ++num_sections_);
  contents_ += cat("<a href=\"#", id, "\">", escaped(text), "</a>\n");
  body_ += cat("<h2 id=\"", id, "\">", escaped(text), "</h2>\n");
}
void Page::subheading(std::string_view text) { body_ += cat("<h3>", escaped(text), "</h3>\n"); }
void Page::paragraph(std::string_view text) { body_ += cat("<p>", escaped(text), "</p>\n"); }
void Page::preformatted(std::string_view text) { body_ += cat("<pre>", escaped(text), "</pre>\n"); }
void Page::folded(std::string_view summary, std::string_view preformatted) {
  body_ += cat("<details><summary>", escaped(summary), "</summary><pre>", escaped(preformatted), "</pre></details>\n");
}
void Page::cards(const std::vector<Card>& cards) {
  body_ += "<div class=\"cards\">";
  for (const Card& card : cards) {
    body_ += cat("<div class=\"card\"><div class=\"label\">", escaped(card.label), "</div><div class=\"value\">",
                 escaped(card.value), "</div><div class=\"note\">", escaped(card.note), "</div></div>");
  }
  body_ += "</div>\n";
}
void Page::list(const std::vector<std::string>& items) {
  body_ += "<ul class=\"findings\">";
  for (const auto& item : items) body_ += cat("<li>", escaped(item), "</li>\n");
  body_ += "</ul>\n";
}
void Page::tree(const std::vector<Tree>& roots) { body_ += cat("<div class=\"tree\">", tree_html(roots), "</div>\n"); }

void Page::table(const Table& table, std::string_view caption) {
  const auto numeric = detail::number_columns(table);
  const auto cell = [&](std::string_view tag, size_t column, std::string_view text) {
    const bool right = column < numeric.size() && numeric[column];
    const bool is_long = text.size() > kLongCell;
    return cat("<", tag,
               right     ? " class=\"number\">"
               : is_long ? " class=\"text\">"
                         : ">",
               escaped(text), "</", tag, ">");
  };
  body_ += "<div class=\"table\"><table>";
  body_ += "<thead><tr>";
  for (size_t i = 0; i < table.header.size(); ++i) body_ += cell("th", i, table.header[i]);
  body_ += "</tr></thead><tbody>\n";
  for (const auto& row : table.rows) {
    body_ += "<tr>";
    for (size_t i = 0; i < row.size(); ++i) body_ += cell("td", i, row[i]);
    body_ += "</tr>\n";
  }
  body_ += "</tbody></table></div>\n";
  if (!caption.empty()) body_ += cat("<p class=\"caption\">", escaped(caption), "</p>\n");
}

void Page::views(const std::vector<View>& views, std::string_view caption, std::string_view pick) {
  if (views.empty()) return;
  const std::string id = cat("chart", ++num_charts_);
  body_ += cat("<figure><header><h3>", escaped(views.front().second.title), "</h3>");
  if (views.size() > 1) body_ += cat("<div class=\"pick\" id=\"", id, "-pick\">", escaped(pick), "</div>");
  body_ += cat("</header><div class=\"chart\" id=\"", id, "\"></div>");
  if (!caption.empty()) body_ += cat("<figcaption>", escaped(caption), "</figcaption>");
  Json list = Json::array();
  for (const auto& [label, figure] : views) {
    list.push_back(
        Json::object({{"label", label}, {"title", figure.title}, {"data", figure.data}, {"layout", figure.layout}}));
  }
  body_ += cat("</figure>\n<script>add('", id, "', ", script_json(list), ");</script>\n");
}

std::string Page::html() const {
  const std::string_view plotly(coppice_plotly_begin, static_cast<size_t>(coppice_plotly_end - coppice_plotly_begin));
  return cat(kDoctype, "\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n",
             "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
             "<link rel=\"icon\" href=\"data:,\">\n<title>", escaped(title_), "</title>\n<style>", kStyle,
             "</style>\n<script>", plotly, "</script>\n<script>", kScript, "</script>\n</head><body>\n<h1>",
             escaped(title_), "</h1>\n<nav>", contents_, "</nav>\n<main>\n", body_, "</main>\n", kFooter, version(),
             ". One file, offline: hover for values, drag to zoom, double-click to zoom out, click a name to hide its "
             "line.</footer>\n<script>drawAll();</script>\n</body></html>\n");
}

bool Page::is_file(const std::filesystem::path& path) {
  if (read_start(path, kDoctype.size()) != kDoctype) return false;
  return read_file(path).find(kFooter) != std::string::npos;
}

}  // namespace coppice::report
