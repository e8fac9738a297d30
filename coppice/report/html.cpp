#include "coppice/report/html.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "coppice/base/check.h"
#include "coppice/base/text.h"
#include "coppice/report/page_style.h"

extern "C" const char coppice_plotly_begin[];
extern "C" const char coppice_plotly_end[];

namespace coppice::report {
namespace {

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

// JSON inside a script element: "</" would end it.
std::string script_json(const Json& value) {
  std::string out;
  for (const char c : value.dump()) {
    if (c == '/' && !out.empty() && out.back() == '<') out += '\\';
    out += c;
  }
  return out;
}

bool looks_like_number(std::string_view cell) {
  if (cell.empty()) return false;
  const std::string text(cell.substr(cell[0] == '+' ? 1 : 0));
  char* end = nullptr;
  std::strtod(text.c_str(), &end);
  const std::string_view rest = end;
  return end != text.c_str() && (rest.empty() || rest == "%" || rest.starts_with(" "));
}

std::vector<bool> number_columns(const Table& table) {
  std::vector<bool> numeric(table.header.size(), !table.rows.empty());
  for (const auto& row : table.rows) {
    for (size_t i = 0; i < row.size() && i < numeric.size(); ++i) {
      if (!row[i].empty() && row[i] != "-" && !looks_like_number(row[i])) numeric[i] = false;
    }
  }
  return numeric;
}

size_t display_width(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

Json numbers(const std::vector<double>& values) {
  Json out = Json::array();
  for (const double v : values) out.push_back(std::isfinite(v) ? Json(v) : Json());
  return out;
}

Json axis(std::string_view title, bool log) {
  Json out = Json::object({{"title", Json::object({{"text", title}})}});
  if (log) out["type"] = "log";
  return out;
}

// Okabe and Ito's palette: told apart by readers with any colour vision, on light and dark paper.
constexpr std::string_view kColours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c8c8c"};
std::string_view colour(size_t index) { return kColours[index % std::size(kColours)]; }

Json layout_of(std::string_view title, Json x_axis, Json y_axis) {
  return Json::object({{"title", Json::object({{"text", title}, {"x", 0.02}, {"xanchor", "left"}})},
                       {"xaxis", std::move(x_axis)},
                       {"yaxis", std::move(y_axis)}});
}

// The area between low and high, as one closed outline.
Json band(const Series& series, std::string_view line_colour) {
  std::vector<double> x = series.x, y = series.y_high;
  x.insert(x.end(), series.x.rbegin(), series.x.rend());
  y.insert(y.end(), series.y_low.rbegin(), series.y_low.rend());
  return Json::object({{"type", "scatter"},
                       {"mode", "lines"},
                       {"x", numbers(x)},
                       {"y", numbers(y)},
                       {"fill", "toself"},
                       {"fillcolor", cat(line_colour, "30")},
                       {"line", Json::object({{"width", 0}})},
                       {"legendgroup", series.name},
                       {"showlegend", false},
                       {"hoverinfo", "skip"}});
}

}  // namespace

Page::Page(std::string title) : title_(std::move(title)) {}

void Page::heading(std::string_view text) { body_ += cat("<h2>", escaped(text), "</h2>\n"); }
void Page::paragraph(std::string_view text) { body_ += cat("<p>", escaped(text), "</p>\n"); }
void Page::preformatted(std::string_view text) { body_ += cat("<pre>", escaped(text), "</pre>\n"); }

void Page::table(const Table& table, std::string_view caption) {
  const auto numeric = number_columns(table);
  const auto cell = [&](std::string_view tag, size_t column, std::string_view text) {
    const bool right = column < numeric.size() && numeric[column];
    return cat("<", tag, right ? " class=\"number\">" : ">", escaped(text), "</", tag, ">");
  };
  body_ += "<div class=\"table\"><table>";
  if (!caption.empty()) body_ += cat("<caption>", escaped(caption), "</caption>");
  body_ += "<thead><tr>";
  for (size_t i = 0; i < table.header.size(); ++i) body_ += cell("th", i, table.header[i]);
  body_ += "</tr></thead><tbody>\n";
  for (const auto& row : table.rows) {
    body_ += "<tr>";
    for (size_t i = 0; i < row.size(); ++i) body_ += cell("td", i, row[i]);
    body_ += "</tr>\n";
  }
  body_ += "</tbody></table></div>\n";
}

void Page::plot(const Json& data, const Json& layout) {
  const std::string id = cat("chart", ++num_charts_);
  body_ += cat("<div class=\"chart\" id=\"", id, "\"></div>\n<script>draw('", id, "', ", script_json(data), ", ",
               script_json(layout), ");</script>\n");
}

void Page::chart(const LineChart& chart) {
  Json data = Json::array();
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const auto& series = chart.series[i];
    COPPICE_CHECK(series.x.size() == series.y.size(), series.name);
    if (!series.y_low.empty()) data.push_back(band(series, colour(i)));
    Json line = Json::object({{"color", colour(i)}, {"width", 2}});
    if (series.dashed) line["dash"] = "dash";
    data.push_back(Json::object({{"type", "scatter"},
                                 {"mode", series.x.size() < 40 ? "lines+markers" : "lines"},
                                 {"name", series.name},
                                 {"legendgroup", series.name},
                                 {"x", numbers(series.x)},
                                 {"y", numbers(series.y)},
                                 {"line", std::move(line)}}));
  }
  Json layout = layout_of(chart.title, axis(chart.x_label, chart.log_x), axis(chart.y_label, chart.log_y));
  layout["hovermode"] = "x unified";
  Json shapes = Json::array(), notes = Json::array();
  for (const auto& mark : chart.marks) {
    shapes.push_back(Json::object({{"type", "line"},
                                   {"x0", mark.x},
                                   {"x1", mark.x},
                                   {"yref", "paper"},
                                   {"y0", 0},
                                   {"y1", 1},
                                   {"line", Json::object({{"dash", "dot"}, {"width", 1.5}, {"color", "#8c8c8c"}})}}));
    notes.push_back(Json::object({{"x", mark.x},
                                  {"y", 1},
                                  {"yref", "paper"},
                                  {"yanchor", "bottom"},
                                  {"text", mark.text},
                                  {"showarrow", false}}));
  }
  layout["shapes"] = std::move(shapes);
  layout["annotations"] = std::move(notes);
  plot(data, layout);
}

void Page::chart(const BarChart& chart) {
  Json data = Json::array();
  for (size_t i = 0; i < chart.groups.size(); ++i) {
    const auto& group = chart.groups[i];
    COPPICE_CHECK(group.values.size() == chart.categories.size(), group.name);
    Json bar = Json::object({{"type", "bar"},
                             {"name", group.name},
                             {"x", Json::array_of(chart.categories)},
                             {"y", numbers(group.values)},
                             {"marker", Json::object({{"color", colour(i)}})}});
    if (!group.errors.empty()) {
      bar["error_y"] = Json::object({{"type", "data"}, {"array", numbers(group.errors)}, {"visible", true}});
    }
    data.push_back(std::move(bar));
  }
  Json layout = layout_of(chart.title, axis(chart.x_label, false), axis(chart.y_label, false));
  layout["barmode"] = "group";
  plot(data, layout);
}

void Page::chart(const HeatMap& chart) {
  Json z = Json::array();
  for (const auto& row : chart.values) z.push_back(numbers(row));
  Json data =
      Json::array({Json::object({{"type", "heatmap"},
                                 {"x", Json::array_of(chart.x)},
                                 {"y", Json::array_of(chart.y)},
                                 {"z", std::move(z)},
                                 {"colorscale", "Viridis"},
                                 {"colorbar", Json::object({{"title", Json::object({{"text", chart.unit}})}})}})});
  Json x_axis = axis(chart.x_label, false), y_axis = axis(chart.y_label, false);
  x_axis["type"] = "category";
  y_axis["type"] = "category";
  y_axis["autorange"] = "reversed";
  plot(data, layout_of(chart.title, std::move(x_axis), std::move(y_axis)));
}

std::string Page::html() const {
  const std::string_view plotly(coppice_plotly_begin, static_cast<size_t>(coppice_plotly_end - coppice_plotly_begin));
  return cat("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n",
             "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
             "<link rel=\"icon\" href=\"data:,\">\n<title>", escaped(title_), "</title>\n<style>", kStyle,
             "</style>\n<script>", plotly, "</script>\n<script>", kScript, "</script>\n</head><body>\n<h1>",
             escaped(title_), "</h1>\n", body_,
             "<footer>Made by coppice. One file: charts can be zoomed and series toggled, "
             "offline.</footer>\n</body></html>\n");
}

std::string text_table(const Table& table) {
  const auto numeric = number_columns(table);
  std::vector<size_t> width(table.header.size());
  const auto widen = [&](const std::vector<std::string>& row) {
    for (size_t i = 0; i < row.size() && i < width.size(); ++i) width[i] = std::max(width[i], display_width(row[i]));
  };
  widen(table.header);
  for (const auto& row : table.rows) widen(row);
  std::string out;
  const auto add = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t i = 0; i < row.size() && i < width.size(); ++i) {
      const std::string padding(width[i] - display_width(row[i]), ' ');
      line += numeric[i] ? cat(padding, row[i]) : cat(row[i], padding);
      if (i + 1 < width.size()) line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += cat(line, "\n");
  };
  add(table.header);
  std::vector<std::string> rule;
  for (const size_t w : width) rule.emplace_back(w, '-');
  add(rule);
  for (const auto& row : table.rows) add(row);
  return out;
}

}  // namespace coppice::report
