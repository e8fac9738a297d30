#include "coppice/demo/page.h"

#include <cmath>

#include "coppice/base/text.h"

namespace coppice::demo {
namespace {

struct Arm {
  std::string_view name;
  ArmResult SeedResult::* result;
};
constexpr Arm kArms[] = {{"E experts at the expansion (trunk)", &SeedResult::trunk},
                         {"just after the expansion", &SeedResult::expanded},
                         {"E experts, continued (control)", &SeedResult::control},
                         {"expanded, continued (upcycled)", &SeedResult::upcycled},
                         {"N experts from scratch", &SeedResult::scratch}};

std::vector<double> over_seeds(const std::vector<SeedResult>& seeds,
                               const std::function<double(const SeedResult&)>& value) {
  std::vector<double> out;
  for (const auto& seed : seeds) out.push_back(value(seed));
  return out;
}

std::string mean_and_range(const Spread& s, int decimals) {
  return cat(fixed_text(s.mean, decimals), " (", fixed_text(s.low, decimals), " to ", fixed_text(s.high, decimals),
             ")");
}

std::vector<std::string> domains_of(const std::vector<SeedResult>& seeds) {
  std::vector<std::string> names;
  for (const auto& [name, loss] : seeds.front().trunk.loss) names.push_back(name);
  return names;
}

// Mean curve over seeds with the range as a band; seeds share the grid of steps.
report::Series mean_curve(const std::vector<SeedResult>& seeds, std::string_view name, ArmResult SeedResult::* arm) {
  report::Series out{.name = std::string(name)};
  const auto& first = (seeds.front().*arm).curve;
  for (size_t i = 0; i < first.size(); ++i) {
    const auto s = spread(over_seeds(seeds, [&](const SeedResult& r) { return (r.*arm).curve.at(i).second; }));
    out.x.push_back(first[i].first);
    out.y.push_back(s.mean);
    out.y_low.push_back(s.low);
    out.y_high.push_back(s.high);
  }
  return out;
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
  for (const auto& arm : {kArms[3], kArms[4]}) {
    report::BarChart::Group group{.name = std::string(arm.name)};
    for (const auto& domain : chart.categories) {
      const auto s = spread(over_seeds(
          seeds, [&](const SeedResult& r) { return r.control.loss.at(domain) - (r.*arm.result).loss.at(domain); }));
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
  report::Table table{.header = {"domain", "package", "version", "training tokens", "SHA-256 of the text"}};
  for (const auto& domain : data.domains) {
    const auto& source = data.sources.at(domain.name);
    table.rows.push_back({domain.name, source.at("package").as_string(), source.at("version").as_string(),
                          std::to_string(domain.train_tokens), source.at("sha256").as_string().substr(0, 16)});
  }
  return table;
}

std::string percent(double share) { return cat(fixed_text(100 * share, 1), " %"); }

}  // namespace

report::Table loss_table(const std::vector<SeedResult>& seeds) {
  report::Table table{.header = {"validation loss, nats per token", "mean", "lowest", "highest"}};
  const auto domains = domains_of(seeds);
  for (const auto& domain : domains) table.header.push_back(domain);
  for (const auto& arm : kArms) {
    const auto all = spread(over_seeds(seeds, [&](const SeedResult& s) { return (s.*arm.result).mean_loss(); }));
    std::vector<std::string> row = {std::string(arm.name), fixed_text(all.mean, 4), fixed_text(all.low, 4),
                                    fixed_text(all.high, 4)};
    for (const auto& domain : domains) {
      const auto one = spread(over_seeds(seeds, [&](const SeedResult& s) { return (s.*arm.result).loss.at(domain); }));
      row.push_back(fixed_text(one.mean, 3));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::vector<std::string> findings(const std::vector<SeedResult>& seeds) {
  std::vector<std::string> out;
  const auto jump = spread(over_seeds(seeds, [](const SeedResult& s) { return s.jump(); }));
  out.push_back(cat("Jump at the expansion: ", mean_and_range(jump, 4), " nats."));

  const auto gain = spread(over_seeds(seeds, [](const SeedResult& s) { return s.gain(); }));
  out.push_back(
      cat("Gain of expanding over training on with E experts: L_E - L_up = ", mean_and_range(gain, 4), " nats."));

  const auto closure = gap_closure(seeds);
  const std::string gap = cat("L_E - L_N = ", mean_and_range(closure.gap, 4), " nats");
  if (closure.reliable) {
    out.push_back(cat("Gap closure eta = (L_E - L_up) / (L_E - L_N): ", percent(closure.eta.mean), " (",
                      percent(closure.eta.low), " to ", percent(closure.eta.high), " over ", seeds.size(), " seeds); ",
                      gap, "."));
  } else if (seeds.size() < 2) {
    out.push_back(cat("Gap closure eta is not given: one seed has no spread; ", gap, "."));
  } else {
    out.push_back(cat("Gap closure eta is not given: the gap between the controls, ", gap,
                      ", is not above three times its standard error (", number_text(closure.gap.standard_error, 2),
                      ")."));
  }

  const auto saved = compute_saved(seeds);
  const auto& first = seeds.front();
  out.push_back(cat("Step time: ", fixed_text(first.control.seconds_per_step * 1e3, 1), " ms with E experts, ",
                    fixed_text(first.scratch.seconds_per_step * 1e3, 1),
                    " ms with N. Training time saved against N experts from scratch: predicted ",
                    percent(saved.predicted), " from the step times, measured ", percent(saved.measured),
                    " by the clock, scoring and expansion included."));
  return out;
}

report::Page demo_page(const DemoOptions& options, const PreparedData& data, const std::vector<SeedResult>& seeds) {
  const auto plan = budget(options);
  const auto experts = options.experts.resolve(options.base_experts);
  report::Page page("coppice demo: growing a small Mixture-of-Experts model");
  page.paragraph(cat("A model with E = ", options.base_experts, " experts a layer, top-", options.top_k,
                     ", was trained on ", count_text(static_cast<double>(plan.growth_step * plan.batch_tokens)),
                     " tokens of real text, expanded to N = ", experts, " experts and trained on to ",
                     count_text(static_cast<double>(plan.steps * plan.batch_tokens)),
                     " tokens. Two controls saw the same number of tokens: the E-expert model continued, and an "
                     "N-expert model from scratch. "
                     "All arms of a seed read the same batches in the same order."));
  page.heading("What came out");
  page.table(loss_table(seeds), "Mean over domains and seeds, range over seeds, mean by domain");
  for (const auto& sentence : findings(seeds)) page.paragraph(sentence);
  page.chart(
      loss_chart(seeds),
      "Lines are means over seeds, shades their range. Expanding pays from where the upcycled line falls below the "
      "control's; the line from scratch is what it can reach.");
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
