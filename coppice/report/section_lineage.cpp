// Where experts come from: which were copied and why, and the sequence of models.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "coppice/base/text.h"
#include "coppice/report/sections_detail.h"

namespace coppice::report::detail {
namespace {

constexpr size_t kMostViews = 40, kMostLayers = 128;

std::vector<size_t> copies_of(const std::vector<uint32_t>& parents, size_t experts) {
  std::vector<size_t> out(experts, 0);
  for (const uint32_t parent : parents) {
    if (parent < experts) ++out[parent];
  }
  return out;
}

HeatMap utility_map(const GrowthRecord& growth, const std::string& name, const plan::MetricScores& metric) {
  HeatMap map{.title = cat("Utility of every expert by ", name),
              .x_label = "expert",
              .y_label = "layer",
              .unit = "multiple of an even share",
              .around_one = true};
  for (const auto& [layer, values] : metric.fc1.sum) {
    if (map.y.size() >= kMostLayers) break;
    std::vector<double> row = times_even(values);
    if (const auto second = metric.fc2.sum.find(layer);
        second != metric.fc2.sum.end() && second->second.size() == row.size()) {
      const auto other = times_even(second->second);
      for (size_t e = 0; e < row.size(); ++e) row[e] = (row[e] + other[e]) / 2;
    }
    std::vector<std::string> notes(row.size());
    if (const auto parents = growth.parents.find(layer); parents != growth.parents.end()) {
      const auto copies = copies_of(parents->second, row.size());
      for (size_t e = 0; e < row.size(); ++e) notes[e] = copies[e] > 1 ? cat("\u00d7", copies[e]) : "";
    }
    while (map.x.size() < row.size()) map.x.push_back(cat(map.x.size()));
    map.y.push_back(cat(layer));
    map.values.push_back(std::move(row));
    map.notes.push_back(std::move(notes));
  }
  return map;
}

// The number of experts that each parent has afterwards.
HeatMap copies_map(const GrowthRecord& growth, size_t experts) {
  HeatMap map{.title = cat("Experts made of every parent, ", growth.name),
              .x_label = "expert",
              .y_label = "layer",
              .unit = "experts"};
  for (size_t e = 0; e < experts; ++e) map.x.push_back(cat(e));
  for (const auto& [layer, parents] : growth.parents) {
    if (map.y.size() >= kMostLayers) break;
    map.y.push_back(cat(layer));
    auto& row = map.values.emplace_back();
    for (const size_t count : copies_of(parents, experts)) row.push_back(static_cast<double>(count));
  }
  return map;
}

// Parents above, their children below, one line each: of one layer over all expansions.
LineChart descent(const JsonReader& lineage, int64_t layer, const std::string& run) {
  LineChart chart{.title = cat("Descendants of experts: ", run, ", layer ", layer),
                  .x_label = "",
                  .y_label = "experts, siblings side by side"};
  // ancestors[g][e]: of expert e of the last model, which it descends from after g expansions.
  std::vector<std::vector<uint32_t>> ancestors;
  for (size_t step = lineage_steps(lineage); step-- > 0;) {
    const auto all_parents = lineage_parents(lineage, step);
    const auto found = all_parents.find(layer);
    if (found == all_parents.end()) return chart;
    const auto& parents = found->second;
    if (ancestors.empty()) {
      auto& self = ancestors.emplace_back();
      for (uint32_t e = 0; e < parents.size(); ++e) self.push_back(e);
    }
    std::vector<uint32_t> above;
    for (const uint32_t e : ancestors.front()) {
      if (e >= parents.size()) return chart;
      above.push_back(parents[e]);
    }
    ancestors.insert(ancestors.begin(), above);
  }
  if (ancestors.empty()) return chart;
  const size_t experts = ancestors.back().size();
  std::vector<size_t> order(experts);
  for (size_t e = 0; e < experts; ++e) order[e] = e;
  const auto line_of = [&](size_t e) {
    std::vector<uint32_t> line;
    for (const auto& generation : ancestors) line.push_back(generation[e]);
    return line;
  };
  std::ranges::sort(order, [&](size_t a, size_t b) { return line_of(a) < line_of(b); });
  // An ancestor stands in the middle of its descendants.
  std::vector<std::map<uint32_t, std::pair<double, double>>> middle(ancestors.size());
  for (size_t place = 0; place < experts; ++place) {
    for (size_t g = 0; g < ancestors.size(); ++g) {
      auto& [sum, count] = middle[g][ancestors[g][order[place]]];
      sum += static_cast<double>(place);
      count += 1;
    }
  }
  const auto y_of = [&](size_t g, uint32_t e) { return middle[g].at(e).first / middle[g].at(e).second; };
  Series one{.name = "one child", .colour = 6, .group = "one child"},
      more{.name = "copied", .colour = 1, .group = "copied"};
  std::set<std::tuple<size_t, uint32_t, uint32_t>> drawn;
  for (size_t e = 0; e < experts; ++e) {
    for (size_t g = 0; g + 1 < ancestors.size(); ++g) {
      if (!drawn.insert({g, ancestors[g][e], ancestors[g + 1][e]}).second) continue;
      std::set<uint32_t> children;
      for (size_t i = 0; i < experts; ++i) {
        if (ancestors[g][i] == ancestors[g][e]) children.insert(ancestors[g + 1][i]);
      }
      Series& to = children.size() > 1 ? more : one;
      for (const auto& [x, y] : {std::pair(static_cast<double>(g), y_of(g, ancestors[g][e])),
                                 std::pair(static_cast<double>(g + 1), y_of(g + 1, ancestors[g + 1][e])),
                                 std::pair<double, double>(NAN, NAN)}) {
        to.x.push_back(x);
        to.y.push_back(y);
        to.hover.push_back(cat("expert ", ancestors[g][e], " \u2192 ", ancestors[g + 1][e]));
      }
    }
  }
  for (auto* series : {&one, &more}) {
    if (!series->x.empty()) chart.series.push_back(*series);
  }
  return chart;
}

// Lines that are many become thin, and the drawing tall.
void make_room(const JsonReader& lineage, Figure& drawing, int64_t layer) {
  const auto parents = lineage_parents(lineage, lineage_steps(lineage) - 1);
  const size_t experts = parents.at(layer).size();
  drawing.layout["height"] = static_cast<int64_t>(std::clamp<size_t>(160 + 5 * experts, 260, 1000));
  const double width = experts <= 32 ? 2 : experts <= 128 ? 1.2 : 0.7;
  Json data = Json::array();
  for (Json line : drawing.data.items()) {
    line["line"]["width"] = width;
    data.push_back(std::move(line));
  }
  drawing.data = std::move(data);
}

// "8 experts", "16 experts" below the generations; where an expert stands means nothing.
void name_generations(const JsonReader& lineage, Figure& drawing) {
  Json places = Json::array(), names = Json::array();
  const size_t steps = lineage_steps(lineage);
  for (size_t i = 0; i <= steps; ++i) {
    const Json* experts = lineage.json().at("steps").items()[i < steps ? i : steps - 1].find("experts");
    const bool is_pair = experts != nullptr && experts->is_array() && experts->items().size() == 2;
    places.push_back(i);
    names.push_back(is_pair ? cat(experts->items()[i < steps ? 0 : 1].dump(), " experts") : cat(i));
  }
  Json& x = drawing.layout["xaxis"];
  x["tickvals"] = std::move(places);
  x["ticktext"] = std::move(names);
  x["range"] = Json::array({Json(-0.06), Json(static_cast<double>(steps) + 0.06)});
  drawing.layout["yaxis"]["showticklabels"] = false;
  drawing.layout["yaxis"]["showgrid"] = false;
}

std::string text_in(const Json& json, std::string_view key) {
  const Json* value = json.find(key);
  if (value == nullptr) return "";
  return value->is_string() ? value->as_string() : value->dump();
}

std::string methods_text(const Json& step) {
  std::vector<std::string> words;
  if (const Json* methods = step.find("methods"); methods != nullptr && methods->is_object()) {
    for (const auto& [key, value] : methods->members())
      words.push_back(cat(key, " ", value.is_string() ? value.as_string() : value.dump()));
  }
  return join(words);
}

std::string experts_text(const Json& step) {
  const Json* experts = step.find("experts");
  if (experts == nullptr || !experts->is_array() || experts->items().size() != 2) return "";
  return cat(experts->items()[0].dump(), " \u2192 ", experts->items()[1].dump(), " experts");
}

Tree node_of(const Reported& all, size_t run, const std::vector<int>& from) {
  const RunSummary& summary = all.summaries[run];
  Tree node{.text = all.runs[run].name,
            .note = cat(summary.grew() ? growth_text(summary) : cat(summary.experts_after), " experts, ",
                        count_text(summary.tokens_before), " to ", count_text(summary.tokens_after), " tokens",
                        std::isfinite(summary.loss) ? cat(", training loss ", fixed_text(summary.loss, 4)) : ""),
            .children = {}};
  for (size_t i = 0; i < from.size(); ++i) {
    if (from[i] == static_cast<int>(run)) node.children.push_back(node_of(all, i, from));
  }
  return node;
}

void add_expansions(Page& page, const Reported& all) {
  Table table{.header = {"run", "expansion", "experts", "by", "seed", "source model", "methods"}, .rows = {}};
  std::vector<Page::View> views;
  std::set<std::string> drawn;
  for (const auto& run : all.runs) {
    for (size_t i = 0; i < lineage_steps(run.lineage); ++i) {
      const Json& step = run.lineage.json().at("steps").items()[i];
      table.rows.push_back({run.name, cat(i + 1), experts_text(step), text_in(step, "command"), text_in(step, "seed"),
                            text_in(step, "source_digest").substr(0, 12), methods_text(step)});
    }
    if (lineage_steps(run.lineage) == 0) continue;
    for (const auto& [layer, parents] : lineage_parents(run.lineage, lineage_steps(run.lineage) - 1)) {
      if (views.size() >= kMostViews) break;
      if (LineChart chart = descent(run.lineage, layer, run.name); !chart.series.empty()) {
        Figure drawing = figure(chart);
        name_generations(run.lineage, drawing);
        make_room(run.lineage, drawing, layer);
        drawing.layout["hovermode"] = "closest";
        if (drawn.insert(cat(layer, drawing.data.dump())).second)
          views.emplace_back(cat(run.name, ", layer ", layer), std::move(drawing));
      }
    }
  }
  if (table.rows.empty()) return;
  page.views(
      views,
      "Left the experts of the first model, right those of the last one; orange lines lead to copies. An expert "
      "with many lines to its right was the "
      "most useful one by the scores; in a layer where all lines are orange, every expert was copied equally often.",
      "run and layer");
  page.table(table, "Every expansion in the lineage (coppice.json) of the newest checkpoints.");
}

}  // namespace

void add_choice(Page& page, const Reported& all) {
  std::vector<std::pair<std::string, std::vector<Page::View>>> choices;
  for (const auto& growth : all.files.growths) {
    if (!growth.scores) continue;
    std::vector<Page::View> views;
    for (const auto& [name, metric] : growth.scores->metrics) {
      if (HeatMap map = utility_map(growth, name, metric); !map.values.empty()) {
        map.title = cat(map.title, ", ", growth.name);
        views.emplace_back(name, figure(map));
      }
    }
    // The default metric of the selections first.
    std::ranges::stable_partition(views, [](const Page::View& view) { return view.first == "gradient_squared"; });
    if (views.empty()) continue;
    const size_t experts = views.front().second.data.items().front().at("x").items().size();
    if (!growth.parents.empty()) views.emplace_back("copies made", figure(copies_map(growth, experts)));
    choices.emplace_back(growth.name, std::move(views));
  }
  if (choices.empty()) return;
  page.heading("Why these experts");
  constexpr size_t kMostGrowths = 6;
  for (size_t i = 0; i < std::min(choices.size(), kMostGrowths); ++i) {
    page.views(choices[i].second,
               "Each expert's share of its layer's utility, as a multiple of an even share; \u00d7n marks parents with "
               "n experts afterwards. Where the "
               "marks do not follow the colour, the selection rule or its cap decided; a map without contrast says "
               "that copying evenly would have done.",
               "metric");
  }
  if (choices.size() > kMostGrowths)
    page.paragraph(cat("The first ", kMostGrowths, " of ", choices.size(), " expansions."));
}

void add_lineage(Page& page, const Reported& all) {
  std::vector<int> from;
  for (size_t i = 0; i < all.runs.size(); ++i) from.push_back(continued_from(all.runs, i));
  const bool has_line = std::ranges::any_of(from, [](int i) { return i >= 0; });
  const bool has_lineage =
      std::ranges::any_of(all.runs, [](const RunRecord& run) { return lineage_steps(run.lineage) > 0; });
  if (!has_line && !has_lineage) return;
  page.heading("Lineage");
  if (has_line) {
    page.paragraph("A run below another one continues it.");
    std::vector<Tree> roots;
    for (size_t i = 0; i < all.runs.size(); ++i) {
      if (from[i] < 0) roots.push_back(node_of(all, i, from));
    }
    page.tree(roots);
  }
  add_expansions(page, all);
}

}  // namespace coppice::report::detail
