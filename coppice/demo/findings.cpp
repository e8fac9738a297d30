#include "coppice/demo/findings.h"

#include "coppice/base/text.h"
#include "coppice/demo/demo.h"

namespace coppice::demo {
namespace {

struct Arm {
  std::string_view name;
  ArmResult SeedResult::* result;
};
constexpr Arm kArms[] = {{"E experts at the expansion (trunk)", &SeedResult::trunk},
                         {"just after the expansion", &SeedResult::expanded},
                         {"E experts, trained on (control)", &SeedResult::control},
                         {"expanded, trained on (upcycled)", &SeedResult::upcycled},
                         {"N experts from scratch", &SeedResult::scratch}};

// "0.016 (0.015 to 0.017)"; a range needs two values.
std::string mean_and_range(const Spread& s, size_t count, double factor, int decimals, std::string_view unit = {}) {
  std::string out = cat(fixed_text(factor * s.mean, decimals), unit);
  if (count > 1) {
    out += cat(" (", fixed_text(factor * s.low, decimals), " to ", fixed_text(factor * s.high, decimals), unit, ")");
  }
  return out;
}

// As a reader wants it behind a word such as "raised" or "lowered": a negative mean becomes positive.
Spread without_sign(const Spread& s) { return s.mean >= 0 ? s : Spread{-s.mean, -s.high, -s.low, s.standard_error}; }

std::string nats(const Spread& s, size_t count) { return mean_and_range(s, count, 1, 3, " nats"); }
std::string percent(const Spread& s, size_t count, int decimals = 0) {
  return mean_and_range(s, count, 100, decimals, " %");
}

}  // namespace

std::vector<std::string> domains_of(const std::vector<SeedResult>& seeds) {
  std::vector<std::string> names;
  for (const auto& [name, loss] : seeds.front().trunk.loss) names.push_back(name);
  return names;
}

Spread over_seeds(const std::vector<SeedResult>& seeds, const std::function<double(const SeedResult&)>& value) {
  std::vector<double> values;
  for (const auto& seed : seeds) values.push_back(value(seed));
  return spread(values);
}

std::string result_sentence(const DemoOptions& options, const std::vector<SeedResult>& seeds) {
  const auto plan = budget(options);
  const auto after = options.experts.resolve(options.base_experts);
  const size_t n = seeds.size();
  const auto gain = over_seeds(seeds, [](const SeedResult& s) { return s.gain(); });
  std::string out = cat("Expanding ", options.base_experts, " experts per layer to ", after, " after ",
                        number_text(100 * options.growth_at, 3), " % of ",
                        count_text(static_cast<double>(plan.steps * plan.batch_tokens)), " tokens ",
                        gain.mean >= 0 ? "lowered" : "raised", " the final loss by ", nats(without_sign(gain), n));

  const auto closure = gap_closure(seeds);
  if (closure.reliable) {
    out += cat(", which closes ", percent(closure.eta, n), " of the gap to ", after, " experts from scratch");
  } else {
    out += cat(", with a gap to ", after, " experts from scratch that is too small or too uncertain to say what share ",
               "was closed");
  }
  const auto saved = over_seeds(seeds, [](const SeedResult& s) { return s.measured_saving(); });
  out += cat(", and took ", percent(without_sign(saved), n), saved.mean >= 0 ? " less" : " more",
             " time than training those from scratch (");
  return out + cat(n, n == 1 ? " seed, so no ranges)." : " seeds, ranges over them).");
}

std::vector<std::string> findings(const std::vector<SeedResult>& seeds) {
  const size_t n = seeds.size();
  std::vector<std::string> out;
  const auto jump = over_seeds(seeds, [](const SeedResult& s) { return s.jump(); });
  out.push_back(cat("Rise of the loss at the expansion (jump): ", nats(jump, n), "."));

  const auto closure = gap_closure(seeds);
  const std::string gap = cat("L_E - L_N = ", nats(closure.gap, n));
  if (closure.reliable) {
    out.push_back(
        cat("Gap between the controls: ", gap, ", ", number_text(closure.gap.mean / closure.gap.standard_error, 2),
            " standard errors. Gap closure eta = mean (L_E - L_up) / mean (L_E - L_N) = ", percent(closure.eta, n),
            ", standard error ", fixed_text(100 * closure.eta.standard_error, 0), " points."));
  } else if (n < 2) {
    out.push_back(cat("Gap closure eta is not given, because one seed has no spread: ", gap, "."));
  } else {
    out.push_back(cat("Gap closure eta is not given: the gap between the controls, ", gap,
                      ", is not above three times its standard error (", number_text(closure.gap.standard_error, 2),
                      ")."));
  }

  const auto of = [&](double (SeedResult::*value)() const) {
    return over_seeds(seeds, [&](const SeedResult& s) { return (s.*value)(); });
  };
  const auto step_ms = [&](ArmResult SeedResult::* arm) {
    return over_seeds(seeds, [&](const SeedResult& s) { return 1e3 * (s.*arm).seconds_per_step; }).mean;
  };
  out.push_back(cat("Time per step: ", fixed_text(step_ms(&SeedResult::control), 1), " ms with E experts, ",
                    fixed_text(step_ms(&SeedResult::scratch), 1),
                    " ms with N. Training time saved against N experts from scratch: ",
                    percent(of(&SeedResult::predicted_saving), n, 1), " predicted from the times per step, ",
                    percent(of(&SeedResult::measured_saving), n, 1),
                    " by the clock, with the time for scoring, expanding and verifying counted."));
  return out;
}

report::Table loss_table(const std::vector<SeedResult>& seeds) {
  report::Table table{.header = {"validation loss, nats per token", "mean", "lowest", "highest"}};
  const auto domains = domains_of(seeds);
  for (const auto& domain : domains) table.header.push_back(domain);
  for (const auto& arm : kArms) {
    const auto all = over_seeds(seeds, [&](const SeedResult& s) { return (s.*arm.result).mean_loss(); });
    std::vector<std::string> row = {std::string(arm.name), fixed_text(all.mean, 4), fixed_text(all.low, 4),
                                    fixed_text(all.high, 4)};
    for (const auto& domain : domains) {
      const auto one = over_seeds(seeds, [&](const SeedResult& s) { return (s.*arm.result).loss.at(domain); });
      row.push_back(fixed_text(one.mean, 3));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

}  // namespace coppice::demo
