#pragma once

// One self-contained HTML page: text, tables and plotly charts, offline, light and dark, printable.

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"

namespace coppice::report {

struct Series {
  std::string name;
  std::vector<double> x, y;
  std::vector<double> y_low, y_high;  ///< a band; empty for none
  bool dashed = false;
};
struct LineChart {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  bool log_x = false, log_y = false;
  struct Mark {
    double x;
    std::string text;
  };
  std::vector<Mark> marks;  ///< vertical lines, such as an expansion
};
struct BarChart {
  std::string title, x_label, y_label;
  std::vector<std::string> categories;
  struct Group {
    std::string name;
    std::vector<double> values, errors;
  };
  std::vector<Group> groups;
};
struct HeatMap {
  std::string title, x_label, y_label, unit;
  std::vector<std::string> x, y;
  std::vector<std::vector<double>> values;  ///< [y][x]
};
struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  ///< cells that parse as numbers are right-aligned
};

class Page {
 public:
  explicit Page(std::string title);
  void heading(std::string_view text);
  void paragraph(std::string_view text);  ///< plain text, escaped
  void preformatted(std::string_view text);
  void table(const Table& table, std::string_view caption = {});
  void chart(const LineChart& chart);
  void chart(const BarChart& chart);
  void chart(const HeatMap& chart);
  /// The whole document, plotly.min.js inside. NaN leaves a gap in a chart.
  std::string html() const;

 private:
  void plot(const Json& data, const Json& layout);
  std::string title_, body_;
  int num_charts_ = 0;
};

/// The same table for a terminal, columns aligned.
std::string text_table(const Table& table);

}  // namespace coppice::report
