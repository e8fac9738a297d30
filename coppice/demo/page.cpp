#include "coppice/demo/page.h"

#include <algorithm>
#include <functional>

#include "coppice/base/text.h"
#include "coppice/demo/findings.h"

namespace coppice::demo {
namespace {

using Curve = std::vector<std::pair<double, double>>;  // (tokens seen, loss)
using PlaceOfTokens = std::function<double(const SeedResult&, double tokens)>;

void add_point(report::Series& series, double x, const Spread& y) {
  series.x.push_back(x);
  series.y.push_back(y.mean);
  series.y_low.push_back(y.low);
  series.y_high.push_back(y.high);
}

// Mean curve over seeds with the range as a band; seeds share the grid of steps.
report::Series mean_curve(const std::vector<SeedResult>& seeds, std::string_view name, ArmResult SeedResult::* arm) {
  report::Series out{.name = std::string(name)};
  const auto& first = (seeds.front().*arm).curve;
  for (size_t i = 0; i < first.size(); ++i) {
    add_point(out, first[i].first, over_seeds(seeds, [&](const SeedResult& r) { return (r.*arm).curve.at(i).second; }));
  }
  return out;
}

// On the line between its neighbours; at either end the loss there.
double loss_at(const Curve& curve, double tokens) {
  const auto after = std::ranges::lower_bound(curve, tokens, {}, &Curve::value_type::first);
  if (after == curve.begin()) return after->second;
  const auto before = std::prev(after);
  if (after == curve.end()) return before->second;
  const double share = (tokens - before->first) / (after->first - before->first);
  return before->second + share * (after->second - before->second);
}

// The E-expert model from the first token to the last.
Curve control_curve(const SeedResult& seed) {
  Curve out = seed.trunk.curve;
  for (const auto& point : seed.control.curve) {
    if (point.first > out.back().first) out.push_back(point);
  }
  return out;
}

// Where on the axis of a chart an arm is when it has seen `tokens`.
struct Axis {
  std::string_view label;
  PlaceOfTokens control, upcycled, scratch;
};

Axis token_axis() {
  const PlaceOfTokens same = [](const SeedResult&, double tokens) { return tokens; };
  return {"tokens seen", same, same, same};
}

Axis time_axis(const DemoOptions& options) {
  const auto batch = static_cast<double>(budget(options).batch_tokens);
  const PlaceOfTokens control = [=](const SeedResult& s, double tokens) {
    return tokens / batch * s.control.seconds_per_step;
  };
  const PlaceOfTokens upcycled = [=](const SeedResult& s, double tokens) {
    const double tau = s.trunk.curve.back().first;
    return control(s, tau) + s.surgery_seconds + (tokens - tau) / batch * s.upcycled.seconds_per_step;
  };
  const PlaceOfTokens scratch = [=](const SeedResult& s, double tokens) {
    return tokens / batch * s.scratch.seconds_per_step;
  };
  return {"seconds of training", control, upcycled, scratch};
}

double mean_place(const std::vector<SeedResult>& seeds, const PlaceOfTokens& place, double tokens) {
  return over_seeds(seeds, [&](const SeedResult& s) { return place(s, tokens); }).mean;
}

// Adds how far an arm is below the control that has seen as many tokens: mean and range over seeds.
void add_below_control(report::Series& series, const std::vector<SeedResult>& seeds, ArmResult SeedResult::* arm,
                       const PlaceOfTokens& place) {
  for (const auto& [tokens, loss] : (seeds.front().*arm).curve) {
    const auto below = over_seeds(seeds, [&](const SeedResult& s) {
      return loss_at(control_curve(s), tokens) - loss_at((s.*arm).curve, tokens);
    });
    add_point(series, mean_place(seeds, place, tokens), below);
  }
}

// Two arms as lines above the control's zero.
report::LineChart gain_chart(const DemoOptions& options, const std::vector<SeedResult>& seeds, const Axis& axis) {
  const auto experts = options.experts.resolve(options.base_experts);
  const double total = seeds.front().control.curve.back().first;
  const double expansion = mean_place(seeds, axis.control, seeds.front().trunk.curve.back().first);
  report::LineChart chart{.title = cat("Loss below that of ", options.base_experts, " experts at the same tokens"),
                          .x_label = std::string(axis.label),
                          .y_label = "nats per token",
                          .zero_line = true};
  report::Series upcycled{.name = cat(options.base_experts, " experts expanded to ", experts)};
  add_point(upcycled, expansion, {});
  add_below_control(upcycled, seeds, &SeedResult::upcycled, axis.upcycled);
  report::Series scratch{.name = cat(experts, " experts from scratch")};
  add_below_control(scratch, seeds, &SeedResult::scratch, axis.scratch);
  const report::Series control{.name = cat(options.base_experts, " experts (control)"),
                               .x = {0, mean_place(seeds, axis.control, total)},
                               .y = {0, 0},
                               .dashed = true};
  // The first points of a model from scratch are far off, while both fall fastest.
  double low = 0, high = 0;
  for (const auto* series : {&upcycled, &scratch}) {
    for (size_t i = series->x.size() / 4; i < series->x.size(); ++i) {
      low = std::min(low, series->y_low[i]);
      high = std::max(high, series->y_high[i]);
    }
  }
  const double margin = 0.08 * (high - low) + 1e-3;
  chart.y_range = {{low - margin, high + margin}};
  chart.series = {upcycled, scratch, control};
  chart.marks = {{expansion, "expansion"}};
  return chart;
}

report::LineChart loss_chart(const std::vector<SeedResult>& seeds) {
  report::LineChart chart{
      .title = "Validation loss, mean and range over seeds", .x_label = "tokens seen", .y_label = "nats per token"};
  chart.series = {mean_curve(seeds, "trunk (E)", &SeedResult::trunk),
                  mean_curve(seeds, "control (E)", &SeedResult::control),
                  mean_curve(seeds, "upcycled (E to N)", &SeedResult::upcycled),
                  mean_curve(seeds, "from scratch (N)", &SeedResult::scratch)};
  chart.marks = {{seeds.front().trunk.curve.back().first, "expansion"}};
  return chart;
}

// Against the E-expert control, whose batches both arms have seen too.
report::BarChart domain_chart(const std::vector<SeedResult>& seeds) {
  report::BarChart chart{.title = "Final loss below that of E experts, by domain",
                         .x_label = "",
                         .y_label = "nats per token",
                         .categories = domains_of(seeds)};
  using Arm = std::pair<std::string_view, ArmResult SeedResult::*>;
  for (const auto& [name, arm] : {Arm{"expanded", &SeedResult::upcycled}, Arm{"from scratch", &SeedResult::scratch}}) {
    report::BarChart::Group group{.name = std::string(name)};
    for (const auto& domain : chart.categories) {
      const auto s =
          over_seeds(seeds, [&](const SeedResult& r) { return r.control.loss.at(domain) - (r.*arm).loss.at(domain); });
      group.values.push_back(s.mean);
      group.errors.push_back((s.high - s.low) / 2);
    }
    chart.groups.push_back(std::move(group));
  }
  return chart;
}

// Of the last MoE layer, where specialisation is strongest; 1 = an even share.
report::HeatMap load_map(const SeedResult& seed) {
  report::HeatMap map{.title = cat("Expert load by domain, last MoE layer of the upcycled model, seed ", seed.seed),
                      .x_label = "expert",
                      .y_label = "",
                      .unit = "times even",
                      .around_one = true};
  for (const auto& [domain, layers] : seed.upcycled.expert_share) {
    map.y.push_back(domain);
    auto& row = map.values.emplace_back();
    for (const double share : layers.back()) row.push_back(share * static_cast<double>(layers.back().size()));
  }
  for (size_t i = 0; i < map.values.front().size(); ++i) map.x.push_back(std::to_string(i));
  return map;
}

report::BarChart sibling_chart(const std::vector<SeedResult>& seeds) {
  report::BarChart chart{
      .title = "How far siblings moved apart", .x_label = "MoE layer", .y_label = "mean |a - b| / |a| of the weights"};
  for (const auto& [layer, distance] : seeds.front().sibling_distance) chart.categories.push_back(cat("layer ", layer));
  for (const auto& seed : seeds) {
    report::BarChart::Group group{.name = cat("seed ", seed.seed)};
    for (const auto& [layer, distance] : seed.sibling_distance) group.values.push_back(distance);
    chart.groups.push_back(std::move(group));
  }
  return chart;
}

report::Table seed_table(const std::vector<SeedResult>& seeds) {
  report::Table table{.header = {"seed", "L_E", "L_up", "L_N", "gap L_E - L_N", "L_E - L_up", "jump", "ms/step E",
                                 "ms/step N", "sibling cosine"}};
  for (const auto& s : seeds) {
    double cosine = 0;
    for (const auto& [layer, value] : s.sibling_cosine) cosine += value / static_cast<double>(s.sibling_cosine.size());
    table.rows.push_back({std::to_string(s.seed), fixed_text(s.control.mean_loss(), 4),
                          fixed_text(s.upcycled.mean_loss(), 4), fixed_text(s.scratch.mean_loss(), 4),
                          fixed_text(s.gap(), 4), fixed_text(s.gain(), 4), fixed_text(s.jump(), 4),
                          fixed_text(s.control.seconds_per_step * 1e3, 1),
                          fixed_text(s.scratch.seconds_per_step * 1e3, 1), fixed_text(cosine, 3)});
  }
  return table;
}

report::Table source_table(const PreparedData& data) {
  report::Table table{.header = {"domain", "package", "version", "training tokens", "SHA-256 of the text as read"}};
  for (const auto& domain : data.domains) {
    const auto& source = data.sources.at(domain.name);
    table.rows.push_back({domain.name, source.at("package").as_string(), source.at("version").as_string(),
                          std::to_string(domain.train_tokens), source.at("sha256").as_string().substr(0, 16)});
  }
  return table;
}

}  // namespace

report::Page demo_page(const DemoOptions& options, const PreparedData& data, const std::vector<SeedResult>& seeds) {
  const auto plan = budget(options);
  const auto experts = options.experts.resolve(options.base_experts);
  report::Page page("coppice demo: growing a small Mixture-of-Experts model");
  page.paragraph(result_sentence(options, seeds));
  page.views({{"tokens", report::figure(gain_chart(options, seeds, token_axis()))},
              {"time", report::figure(gain_chart(options, seeds, time_axis(options)))}},
             "Lines are means over seeds, shades their range. Above zero, a model is better than the control. Time is "
             "the median time per step times the number of steps, and for the expanded model also the time that the "
             "expansion took.",
             "against");
  page.heading("What was compared");
  page.paragraph(cat("A model with E = ", options.base_experts, " experts per layer, top-", options.top_k,
                     ", was trained on ", count_text(static_cast<double>(plan.growth_step * plan.batch_tokens)),
                     " tokens of real text, expanded to N = ", experts, " experts and trained on to ",
                     count_text(static_cast<double>(plan.steps * plan.batch_tokens)),
                     " tokens. Two controls saw the same number of tokens: the E-expert model continued, and an "
                     "N-expert model from scratch. "
                     "All arms of a seed read the same batches in the same order."));
  page.table(loss_table(seeds), "Mean over domains and seeds, range over seeds, mean by domain");
  for (const auto& sentence : findings(seeds)) page.paragraph(sentence);
  page.chart(loss_chart(seeds), "Lines are means over seeds, shades their range.");
  page.chart(domain_chart(seeds),
             "Bars are means, whiskers half the range over seeds; a bar below zero lost to the control.");
  page.heading("Seed by seed");
  page.table(seed_table(seeds));
  page.heading("Experts");
  page.chart(load_map(seeds.front()),
             "Columns that stand out in one row are specialists of that domain; 1 is an even share.");
  page.chart(sibling_chart(seeds), "0: copies are still equal. 1 and more: they are as far apart as they are long.");
  page.heading("Text");
  page.table(source_table(data));
  page.heading("Settings");
  page.preformatted(to_toml(options));
  return page;
}

}  // namespace coppice::demo
