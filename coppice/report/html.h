#pragma once

// One self-contained HTML page: text, tables and plotly charts, offline, light and dark, printable.

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coppice/base/json.h"

namespace coppice::report {

struct Series {
  std::string name;
  std::vector<double> x, y;
  std::vector<double> y_low, y_high;  ///< a band; empty for none
  bool dashed = false;
  int colour = -1;                      ///< index in the palette; -1: by its position
  std::vector<std::string> hover = {};  ///< text for each point instead of its coordinates; empty: coordinates
  std::string group = {};  ///< series of one group share a line of the legend and are toggled together; empty: its own
};
/// A vertical line, such as an expansion.
struct Mark {
  double x;
  std::string text;
};
struct LineChart {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  bool log_x = false, log_y = false;
  std::vector<Mark> marks = {};
  bool zero_line = false;                            ///< emphasise the sign of the values
  std::optional<std::pair<double, double>> y_range;  ///< shown at first; a double click shows all
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
  /// Positions of the columns on a numeric axis, instead of `x`; empty if columns have names.
  std::vector<double> x_at = {};
  std::vector<std::vector<double>> values;           ///< [y][x]
  std::vector<std::vector<std::string>> notes = {};  ///< [y][x], shown beside the value under the pointer; may be empty
  std::vector<Mark> marks = {};                      ///< only if columns have positions
  bool around_one = false;  ///< 1 has a neutral colour; smaller and larger values have different colours
};
struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  ///< cells that parse as numbers are right-aligned
};

/// A chart as plotly takes it, with the page's colours by name ("@c0", "@ink").
struct Figure {
  Json data, layout;
  std::string title;
};
Figure figure(const LineChart& chart);
Figure figure(const BarChart& chart);
Figure figure(const HeatMap& chart);

/// A tree of items.
struct Tree {
  std::string text, note;
  std::vector<Tree> children;
};

class Page {
 public:
  struct Card {
    std::string label, value, note;
  };
  /// One of several charts that share a place; the reader picks by `label`.
  using View = std::pair<std::string, Figure>;

  explicit Page(std::string title);
  void heading(std::string_view text);  ///< a section; the contents at the top link to it
  void subheading(std::string_view text);
  void paragraph(std::string_view text);  ///< plain text, escaped
  void preformatted(std::string_view text);
  void folded(std::string_view summary, std::string_view preformatted);  ///< collapsed on screen, shown in print
  void cards(const std::vector<Card>& cards);
  void list(const std::vector<std::string>& items);
  void tree(const std::vector<Tree>& roots);
  void table(const Table& table, std::string_view caption = {});
  template <class Chart>
  void chart(const Chart& chart, std::string_view caption = {}) {
    views({{"", figure(chart)}}, caption);
  }
  /// `pick` names the kind of labels, such as "against". Adds nothing for an empty list.
  void views(const std::vector<View>& views, std::string_view caption = {}, std::string_view pick = {});
  /// The whole document, plotly.min.js inside. NaN leaves a gap in a chart.
  std::string html() const;
  /// Whether a file is such a document. Throws Error{kNotFound, kIo}.
  static bool is_file(const std::filesystem::path& path);

 private:
  std::string title_, body_, contents_;
  int num_charts_ = 0, num_sections_ = 0;
};

/// The same table for a terminal, columns aligned.
std::string text_table(const Table& table);

}  // namespace coppice::report
