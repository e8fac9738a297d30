// Charts as plotly's data and layout.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>

#include "coppice/base/check.h"
#include "coppice/base/text.h"
#include "coppice/report/html.h"

namespace coppice::report {
namespace {

constexpr size_t kMostCellsApart = 32;  // cells per row; with more, cells have no gap
constexpr int kColours = 7;             // --c0 to --c6 of the style sheet
constexpr const char* kDashes[] = {"solid", "dash", "dot", "dashdot"};

std::string colour(int index) { return cat("@c", index % kColours); }

// Six digits are more precise than a screen, and take a third of the bytes.
Json numbers(const std::vector<double>& values) {
  Json out = Json::array();
  for (const double v : values) {
    out.push_back(std::isfinite(v) ? Json(std::strtod(number_text(v, 7).c_str(), nullptr)) : Json());
  }
  return out;
}

Json axis(std::string_view title, bool log) {
  Json out = Json::object({{"title", Json::object({{"text", title}})}});
  if (log) out["type"] = "log";
  return out;
}

// The area between low and high as one closed outline; points with gaps are left out.
Json band(const Series& series, int line_colour, const std::string& group) {
  std::vector<double> x, y;
  const auto add = [&](size_t i, double value) {
    if (!std::isfinite(value)) return;
    x.push_back(series.x[i]);
    y.push_back(value);
  };
  for (size_t i = 0; i < series.x.size(); ++i) add(i, series.y_high[i]);
  for (size_t i = series.x.size(); i-- > 0;) add(i, series.y_low[i]);
  return Json::object({{"type", "scatter"},
                       {"mode", "lines"},
                       {"x", numbers(x)},
                       {"y", numbers(y)},
                       {"fill", "toself"},
                       {"fillcolor", cat(colour(line_colour), "-band")},
                       {"line", Json::object({{"width", 0}})},
                       {"legendgroup", group},
                       {"showlegend", false},
                       {"hoverinfo", "skip"}});
}

void add_marks(const std::vector<Mark>& marks, bool log_x, Json& layout) {
  Json shapes = Json::array(), notes = Json::array();
  std::set<std::pair<double, std::string>> drawn;
  for (const auto& mark : marks) {
    if (!drawn.emplace(mark.x, mark.text).second) continue;
    shapes.push_back(Json::object({{"type", "line"},
                                   {"x0", mark.x},
                                   {"x1", mark.x},
                                   {"yref", "paper"},
                                   {"y0", 0},
                                   {"y1", 1},
                                   {"line", Json::object({{"dash", "dot"}, {"width", 1.5}, {"color", "@soft"}})}}));
    notes.push_back(Json::object({{"x", log_x ? std::log10(mark.x) : mark.x},
                                  {"y", 1},
                                  {"yref", "paper"},
                                  {"yanchor", "bottom"},
                                  {"text", mark.text},
                                  {"font", Json::object({{"color", "@soft"}, {"size", 12}})},
                                  {"showarrow", false}}));
  }
  if (!notes.items().empty()) {
    layout["shapes"] = std::move(shapes);
    layout["annotations"] = std::move(notes);
  }
}

// Colours from 0 through 1, which has the background colour, to the largest value.
void add_neutral_one(const HeatMap& chart, Json& map) {
  double most = 2;
  for (const auto& row : chart.values) {
    for (const double value : row) most = std::isfinite(value) ? std::max(most, value) : most;
  }
  Json scale = Json::array();
  const std::pair<double, const char*> stops[] = {
      {0, "@div0"}, {0.5 / most, "@div1"}, {1 / most, "@div2"}, {(1 + (most - 1) / 3) / most, "@div3"}, {1, "@div4"}};
  for (const auto& [at, name] : stops) scale.push_back(Json::array({Json(at), Json(name)}));
  map["colorscale"] = std::move(scale);
  map["zmin"] = 0;
  map["zmax"] = most;
}

}  // namespace

Figure figure(const LineChart& chart) {
  Json data = Json::array();
  std::set<std::string> in_legend;
  const auto is_short = [](const Series& series) { return series.x.size() < 40; };
  const bool has_markers = std::ranges::all_of(chart.series, is_short);
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const auto& series = chart.series[i];
    COPPICE_CHECK(series.x.size() == series.y.size(), series.name);
    const std::string group = series.group.empty() ? series.name : series.group;
    const int place = series.colour >= 0 ? series.colour : static_cast<int>(i);
    if (!series.y_low.empty()) data.push_back(band(series, place, group));
    const char* dash = series.dashed ? "dash" : kDashes[static_cast<size_t>(place / kColours) % std::size(kDashes)];
    Json line = Json::object({{"type", "scatter"},
                              {"mode", has_markers ? "lines+markers" : "lines"},
                              {"name", series.name},
                              {"legendgroup", group},
                              {"showlegend", in_legend.insert(group).second},
                              {"x", numbers(series.x)},
                              {"y", numbers(series.y)},
                              {"marker", Json::object({{"size", 5}})},
                              {"line", Json::object({{"color", colour(place)}, {"width", 2}, {"dash", dash}})}});
    if (!series.hover.empty()) {
      line["text"] = Json::array_of(series.hover);
      line["hovertemplate"] = "%{text}<extra></extra>";
    }
    data.push_back(std::move(line));
  }
  Json layout =
      Json::object({{"xaxis", axis(chart.x_label, chart.log_x)}, {"yaxis", axis(chart.y_label, chart.log_y)}});
  if (chart.y_range) layout["yaxis"]["range"] = Json::array({Json(chart.y_range->first), Json(chart.y_range->second)});
  if (chart.zero_line) {
    layout["yaxis"]["rangemode"] = "tozero";
    layout["yaxis"]["zeroline"] = true;
    layout["yaxis"]["zerolinecolor"] = "@soft";
    layout["yaxis"]["zerolinewidth"] = 1.5;
  }
  layout["hovermode"] = chart.series.size() <= 12 ? "x unified" : "closest";
  layout["showlegend"] = in_legend.size() > 1;
  add_marks(chart.marks, chart.log_x, layout);
  return {std::move(data), std::move(layout), chart.title};
}

Figure figure(const BarChart& chart) {
  Json data = Json::array();
  for (size_t i = 0; i < chart.groups.size(); ++i) {
    const auto& group = chart.groups[i];
    COPPICE_CHECK(group.values.size() == chart.categories.size(), group.name);
    Json bar = Json::object({{"type", "bar"},
                             {"name", group.name},
                             {"x", Json::array_of(chart.categories)},
                             {"y", numbers(group.values)},
                             {"marker", Json::object({{"color", colour(static_cast<int>(i))}})}});
    if (!group.errors.empty()) {
      bar["error_y"] = Json::object({{"type", "data"},
                                     {"array", numbers(group.errors)},
                                     {"visible", true},
                                     {"color", "@ink"},
                                     {"thickness", 1.2}});
    }
    data.push_back(std::move(bar));
  }
  Json layout = Json::object({{"xaxis", axis(chart.x_label, false)}, {"yaxis", axis(chart.y_label, false)}});
  layout["barmode"] = "group";
  layout["xaxis"]["type"] = "category";
  layout["showlegend"] = chart.groups.size() > 1;
  return {std::move(data), std::move(layout), chart.title};
}

Figure figure(const HeatMap& chart) {
  Json z = Json::array();
  for (const auto& row : chart.values) z.push_back(numbers(row));
  Json map =
      Json::object({{"type", "heatmap"},
                    {"x", chart.x_at.empty() ? Json::array_of(chart.x) : numbers(chart.x_at)},
                    {"y", Json::array_of(chart.y)},
                    {"z", std::move(z)},
                    {"colorscale", "@sequential"},
                    {"colorbar", Json::object({{"title", Json::object({{"text", chart.unit}, {"side", "right"}})},
                                               {"thickness", 12},
                                               {"outlinewidth", 0}})}});
  if (chart.around_one) add_neutral_one(chart, map);
  std::string hover = cat(chart.y_label, " %{y}, ", chart.x_label, " %{x}: %{z:.4~g}");
  if (!chart.notes.empty()) {
    Json notes = Json::array();
    for (const auto& row : chart.notes) notes.push_back(Json::array_of(row));
    map["text"] = std::move(notes);
    hover += " %{text}";
    const bool is_readable = chart.x.size() <= 40 && chart.y.size() <= 24;
    if (is_readable) map["texttemplate"] = "%{text}";
  }
  map["hovertemplate"] = cat(hover, "<extra></extra>");
  if (!chart.values.empty() && chart.values.front().size() <= kMostCellsApart) map["xgap"] = 1;
  if (chart.y.size() <= kMostCellsApart) map["ygap"] = 1;
  Json x_axis = axis(chart.x_label, false), y_axis = axis(chart.y_label, false);
  for (Json* each : {&x_axis, &y_axis}) {
    if (each == &y_axis || chart.x_at.empty()) (*each)["type"] = "category";
    (*each)["showgrid"] = false;
    (*each)["ticks"] = "";
  }
  x_axis["nticks"] = 16;
  y_axis["nticks"] = 16;
  y_axis["autorange"] = "reversed";
  Json layout = Json::object({{"xaxis", std::move(x_axis)}, {"yaxis", std::move(y_axis)}});
  // Rows keep a readable height: few rows make a low chart.
  layout["height"] = static_cast<int64_t>(std::clamp<size_t>(150 + 26 * chart.y.size(), 220, 560));
  add_marks(chart.marks, false, layout);
  layout["margin"] = Json::object({{"t", 34}});  // space for the tool bar
  Json data = Json::array();
  data.push_back(std::move(map));
  return {std::move(data), std::move(layout), chart.title};
}

}  // namespace coppice::report
