// How tokens are distributed over experts, and how siblings diverge.

#include <algorithm>
#include <cmath>
#include <set>

#include "coppice/base/text.h"
#include "coppice/report/sections_detail.h"

namespace coppice::report::detail {
namespace {

constexpr size_t kMostLines = 8;      // layers as lines up to here, as a heat map beyond
constexpr size_t kMostColumns = 160;  // columns of a heat map over time
constexpr size_t kMostViews = 40;

struct MetricText {
  std::string_view name, title, unit, caption;
};
constexpr MetricText kMetrics[] = {
    {"maxvio", "Load imbalance (MaxVio)", "max load / mean - 1",
     "How much more than an even share the busiest expert gets; 0 is even. A jump at an expansion should be gone after "
     "a few hundred "
     "steps: if it stays, raise balance.rate."},
    {"load_entropy", "Entropy of the load", "",
     "1 is an even load, 0 a single expert. A fall at an expansion that does not recover means that routing settled on "
     "few experts."},
    {"dead_share", "Experts without a token", "share",
     "0 is healthy. Above 0 long after an expansion: copies that never got tokens; the model would be the same without "
     "them."},
    {"sibling_cosine", "Similarity of siblings' weights", "cosine",
     "1 right after an expansion. As long as it stays at 1, copies compute the same and the expansion has no effect "
     "yet; a fall is "
     "specialisation."},
    {"routing_overlap", "Overlap of siblings' tokens", "share",
     "How similar the tokens of siblings are. A falling curve means that they divide the work of their parent."},
    {"effective_top_k", "Effective top-K", "different parents per token",
     "The number of different parents among a token's experts. Below K, siblings take several of the K places of a "
     "token, which wastes capacity until they differ."},
};

MetricText text_of(std::string_view name) {
  const auto* found = std::ranges::find(kMetrics, name, &MetricText::name);
  return found == std::end(kMetrics) ? MetricText{name, name, "", ""} : *found;
}

// Layer metrics that some run has: name -> layers.
std::map<std::string, std::set<int64_t>> layer_metrics(const std::vector<RunRecord>& runs) {
  std::map<std::string, std::set<int64_t>> out;
  for (const auto& run : runs) {
    for (const auto& [tag, points] : run.series) {
      if (const auto found = layer_tag(tag)) out[found->second].insert(found->first);
    }
  }
  return out;
}

// Metrics with an explanation come first, in the order of the table.
std::vector<std::string> in_reading_order(const std::map<std::string, std::set<int64_t>>& metrics) {
  std::vector<std::string> out;
  for (const MetricText& known : kMetrics) {
    if (metrics.contains(std::string(known.name))) out.emplace_back(known.name);
  }
  for (const auto& [name, layers] : metrics) {
    if (std::ranges::find(out, name) == out.end()) out.push_back(name);
  }
  return out;
}

double tokens_at(const RunAxes& axes, double step) {
  const auto found = axes.tokens.find(step);
  return found == axes.tokens.end() ? step : found->second;
}

LineChart layer_lines(const Reported& all, size_t run, const MetricText& text, const std::set<int64_t>& layers) {
  LineChart chart{.title = std::string(text.title), .x_label = "tokens seen", .y_label = std::string(text.unit)};
  for (const int64_t layer : layers) {
    const Points* points = all.runs[run].find(cat(kLayerPrefix, layer, "/", text.name));
    if (points == nullptr) continue;
    Series series{.name = cat("layer ", layer)};
    for (const auto& [step, value] : *points) {
      series.x.push_back(tokens_at(all.axes[run], step));
      series.y.push_back(value);
    }
    series = thinned(std::move(series), 300);
    series.y_low.clear();  // bands of several layers would cover each other
    series.y_high.clear();
    chart.series.push_back(std::move(series));
  }
  for (const auto& [tokens, before, after] : all.summaries[run].growths)
    chart.marks.push_back({tokens, growth_text(before, after)});
  return chart;
}

// Layers down, time to the right; each cell the mean of its stretch of steps.
HeatMap layer_map(const Reported& all, size_t run, const MetricText& text, const std::set<int64_t>& layers) {
  HeatMap map{
      .title = std::string(text.title), .x_label = "tokens seen", .y_label = "layer", .unit = std::string(text.unit)};
  std::set<double> steps;
  for (const int64_t layer : layers) {
    const Points* points = all.runs[run].find(cat(kLayerPrefix, layer, "/", text.name));
    if (points == nullptr) continue;
    for (const auto& [step, value] : *points) steps.insert(step);
  }
  if (steps.empty()) return map;
  const std::vector<double> rising(steps.begin(), steps.end());
  const size_t stretch = (rising.size() + kMostColumns - 1) / kMostColumns;
  const size_t columns = (rising.size() + stretch - 1) / stretch;
  for (size_t c = 0; c < columns; ++c) {
    const size_t last = std::min((c + 1) * stretch, rising.size()) - 1;
    map.x_at.push_back((tokens_at(all.axes[run], rising[c * stretch]) + tokens_at(all.axes[run], rising[last])) / 2);
  }
  for (const auto& [tokens, before, after] : all.summaries[run].growths) {
    const bool is_inside = tokens > map.x_at.front() && tokens < map.x_at.back();
    if (is_inside) map.marks.push_back({tokens, growth_text(before, after)});
  }
  for (const int64_t layer : layers) {
    const Points* points = all.runs[run].find(cat(kLayerPrefix, layer, "/", text.name));
    if (points == nullptr) continue;
    std::vector<double> sum(columns, 0), count(columns, 0);
    for (const auto& [step, value] : *points) {
      const auto index = static_cast<size_t>(std::ranges::lower_bound(rising, step) - rising.begin()) / stretch;
      if (!std::isfinite(value)) continue;
      sum[index] += value;
      count[index] += 1;
    }
    for (size_t c = 0; c < columns; ++c) sum[c] = count[c] > 0 ? sum[c] / count[c] : NAN;
    map.y.push_back(cat(layer));
    map.values.push_back(std::move(sum));
  }
  return map;
}

std::vector<std::string> numbered(size_t count) {
  std::vector<std::string> out;
  for (size_t i = 0; i < count; ++i) out.push_back(cat(i));
  return out;
}

// Domain x expert of one layer.
HeatMap specialisation(const Routing& routing, int64_t layer, const std::string& run) {
  HeatMap map{.title = cat("Which expert serves which domain: ", run, ", layer ", layer),
              .x_label = "expert",
              .y_label = "",
              .unit = "multiple of an even share",
              .around_one = true};
  std::vector<std::string> domains;
  for (const auto& [domain, layers] : routing) domains.push_back(domain);
  for (const auto& [domain, layers] : routing) {
    const auto found = layers.find(layer);
    if (found == layers.end()) continue;
    map.y.push_back(domain_of(domain, domains));
    map.values.push_back(times_even(found->second));
    if (map.x.size() < found->second.size()) map.x = numbered(found->second.size());
  }
  return map;
}

// Layer x expert, all domains together.
HeatMap load_map(const Routing& routing, const std::string& run) {
  HeatMap map{.title = cat("Load of every expert: ", run),
              .x_label = "expert",
              .y_label = "layer",
              .unit = "multiple of an even share",
              .around_one = true};
  std::map<int64_t, std::vector<double>> sums;
  for (const auto& [domain, layers] : routing) {
    for (const auto& [layer, counts] : layers) {
      auto& sum = sums[layer];
      if (sum.size() < counts.size()) sum.resize(counts.size());
      for (size_t e = 0; e < counts.size(); ++e) sum[e] += counts[e];
    }
  }
  for (const auto& [layer, counts] : sums) {
    map.y.push_back(cat(layer));
    map.values.push_back(times_even(counts));
    if (map.x.size() < counts.size()) map.x = numbered(counts.size());
  }
  return map;
}

// 0: every layer serves every domain alike; 1: no two domains share an expert. Mean total variation to the mean domain.
Points specialisation_by_layer(const Routing& routing) {
  std::map<int64_t, std::vector<std::vector<double>>> shares;
  for (const auto& [domain, layers] : routing) {
    for (const auto& [layer, counts] : layers) shares[layer].push_back(times_even(counts));
  }
  Points out;
  for (const auto& [layer, domains] : shares) {
    const size_t experts = domains.front().size();
    double distance = 0;
    for (size_t e = 0; e < experts; ++e) {
      double mean = 0;
      for (const auto& domain : domains)
        mean += e < domain.size() ? domain[e] / static_cast<double>(domains.size()) : 0;
      for (const auto& domain : domains) distance += e < domain.size() ? std::abs(domain[e] - mean) : 0;
    }
    out.emplace_back(layer, distance / 2 / static_cast<double>(experts * domains.size()));
  }
  return out;
}

void add_routing(Page& page, const Reported& all) {
  std::vector<Page::View> by_domain, by_layer;
  LineChart strength{
      .title = "Specialisation by layer", .x_label = "layer", .y_label = "mean distance of a domain from all"};
  for (const size_t index : all.grown_first()) {
    const std::string& run = all.runs[index].name;
    const auto found = all.files.routing.find(run);
    if (found == all.files.routing.end()) continue;
    const Routing& routing = found->second;
    if (by_layer.size() >= kMostViews) break;
    by_layer.emplace_back(run, figure(load_map(routing, run)));
    Series series{.name = run, .colour = all.colour_of(run)};
    for (const auto& [layer, value] : specialisation_by_layer(routing)) {
      series.x.push_back(layer);
      series.y.push_back(value);
    }
    if (routing.size() > 1 && series.x.size() > 2 && strength.series.size() < 8)
      strength.series.push_back(std::move(series));
    std::set<int64_t> layers;
    for (const auto& [domain, of_layer] : routing) {
      for (const auto& [layer, counts] : of_layer) layers.insert(layer);
    }
    if (routing.size() < 2) continue;
    for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) {
      if (by_domain.size() < kMostViews)
        by_domain.emplace_back(cat(run, ", layer ", *layer), figure(specialisation(routing, *layer, run)));
    }
  }
  page.views(
      by_domain,
      "Share of a domain's tokens that an expert gets, as a multiple of an even share (1, neutral). Columns that stand "
      "out in one row "
      "are specialists; a map without contrast means that experts do not specialise in domains.",
      "run and layer");
  page.views(by_layer,
             "All validation text together, as a multiple of an even share. A dark row of its own is a layer whose "
             "router has collapsed; "
             "columns at 0 are experts without tokens.",
             "run");
  if (!strength.series.empty()) {
    Figure drawing = figure(strength);
    if (strength.series.front().x.size() <= 16) drawing.layout["xaxis"]["dtick"] = 1;
    page.views({{"", std::move(drawing)}},
               "Half the mean absolute difference between a domain's shares and those of all domains: 0 where every "
               "domain uses every expert "
               "equally, near 1 if domains share no expert.");
  }
}

}  // namespace

void add_experts(Page& page, const Reported& all) {
  const auto metrics = layer_metrics(all.runs);
  if (metrics.empty() && all.files.routing.empty()) return;
  page.heading("Experts");
  add_routing(page, all);
  for (const std::string& name : in_reading_order(metrics)) {
    const std::set<int64_t>& layers = metrics.at(name);
    const MetricText text = text_of(name);
    std::vector<Page::View> views;
    for (const size_t run : all.grown_first()) {
      if (views.size() >= kMostViews) break;
      if (layers.size() <= kMostLines) {
        if (LineChart chart = layer_lines(all, run, text, layers); !chart.series.empty())
          views.emplace_back(all.runs[run].name, figure(chart));
      } else if (HeatMap map = layer_map(all, run, text, layers); !map.values.empty()) {
        views.emplace_back(all.runs[run].name, figure(map));
      }
    }
    page.views(views, text.caption, "run");
  }
}

}  // namespace coppice::report::detail
