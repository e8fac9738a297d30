#include "coppice/plan/selection.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <tuple>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/find_row.h"
#include "coppice/base/text.h"
#include "coppice/matrix/mean_std.h"
#include "coppice/methods/purpose.h"

namespace coppice::plan {
namespace {

constexpr uint64_t kDefaultCap = 3;
constexpr std::string_view kPaper = "arXiv:2604.19835";

using Counts = std::vector<uint32_t>;

/// How many of the `left` copies one expert may still get under the cap.
uint64_t at_most(const SelectionInput& in, uint64_t left) { return std::min(left, in.max_duplicates.value_or(left)); }

Counts uniform(const SelectionInput& in) {
  const auto experts = static_cast<int64_t>(in.scores.size());
  Counts counts(in.scores.size(), static_cast<uint32_t>(in.num_new / experts));
  for (int64_t e = 0; e < in.num_new % experts; ++e) ++counts[e];
  return counts;
}

Counts greedy(const SelectionInput& in) {
  std::vector<size_t> best_first(in.scores.size());
  std::iota(best_first.begin(), best_first.end(), size_t{0});
  std::ranges::sort(best_first,
                    [&](size_t a, size_t b) { return std::tuple(-in.scores[a], a) < std::tuple(-in.scores[b], b); });
  Counts counts(in.scores.size(), 0);
  auto left = static_cast<uint64_t>(in.num_new);
  for (const size_t e : best_first) {
    const uint64_t taken = at_most(in, left);
    counts[e] = static_cast<uint32_t>(taken);
    left -= taken;
  }
  return counts;
}

/// e^x for x <= 0 to within 2 ulp; std::exp's last bit depends on the C library.
double stable_exp(double x) {
  if (x < -745.0) return 0.0;
  constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  const double k = std::floor(x / (kLn2High + kLn2Low) + 0.5);
  const double r = (x - k * kLn2High) - k * kLn2Low;  // |r| <= ln(2) / 2
  double sum = 1.0;
  for (int i = 14; i > 0; --i) sum = 1.0 + sum * r / i;
  return std::ldexp(sum, static_cast<int>(k));
}

/// The softmax numerators of experts below the cap; 0 for the others.
std::vector<double> open_weights(std::span<const double> standardised, const std::vector<bool>& open,
                                 double temperature) {
  double top = -INFINITY;
  for (size_t e = 0; e < open.size(); ++e) {
    if (open[e]) top = std::max(top, standardised[e]);
  }
  std::vector<double> weights(open.size(), 0.0);
  for (size_t e = 0; e < open.size(); ++e) {
    if (open[e]) weights[e] = stable_exp((standardised[e] - top) / temperature);
  }
  return weights;
}

/// The first index whose cumulative weight exceeds `u` times the total.
size_t invert_cumulative(std::span<const double> weights, double u) {
  const double target = u * std::accumulate(weights.begin(), weights.end(), 0.0);
  double cumulative = 0;
  size_t last = 0;  // if u is so close to 1 that the product rounds to the total
  for (size_t e = 0; e < weights.size(); ++e) {
    if (weights[e] == 0) continue;
    cumulative += weights[e];
    last = e;
    if (cumulative > target) break;
  }
  return last;
}

Counts weighted_sampling(const SelectionInput& in) {
  std::vector<double> standardised(in.scores.begin(), in.scores.end());
  const double largest =
      std::ranges::max(standardised);  // values are first divided by the largest, so that no square overflows
  for (double& s : standardised) s /= largest;
  const auto [mean, std] = matrix::mean_std(std::span<const double>(standardised));
  const bool all_equal = std::ranges::min(standardised) == 1.0;
  for (double& s : standardised) s = all_equal ? 0.0 : (s - mean) / std;

  RngKey key = in.key;
  key.purpose = methods::kSelection;
  const Rng rng(key);
  Counts counts(in.scores.size(), 0);
  std::vector<bool> open(in.scores.size(), true);
  auto weights = open_weights(standardised, open, in.temperature);
  for (int64_t draw = 0; draw < in.num_new; ++draw) {
    const size_t e = invert_cumulative(weights, rng.uniform(static_cast<uint64_t>(draw)));
    if (++counts[e] == in.max_duplicates) {
      open[e] = false;
      weights = open_weights(standardised, open, in.temperature);
    }
  }
  return counts;
}

/// num * score / sum over the experts below the cap; equal shares if all their scores are 0.
std::vector<double> quotas(std::span<const double> scores, const std::vector<bool>& open, uint64_t num) {
  std::vector<double> shares(scores.size(), 0.0);
  double largest = 0;
  for (size_t e = 0; e < open.size(); ++e) {
    if (open[e]) largest = std::max(largest, scores[e]);
  }
  double sum = 0;
  for (size_t e = 0; e < open.size(); ++e) {
    if (!open[e]) continue;
    shares[e] = largest > 0 ? scores[e] / largest : 1.0;
    sum += shares[e];
  }
  for (double& share : shares) share = static_cast<double>(num) * share / sum;
  return shares;
}

Counts proportional(const SelectionInput& in) {
  Counts counts(in.scores.size(), 0);
  std::vector<bool> open(in.scores.size(), true);
  auto left = static_cast<uint64_t>(in.num_new);
  std::vector<double> quota;
  for (bool changed = true; changed && left > 0;) {
    changed = false;
    quota = quotas(in.scores, open, left);
    for (size_t e = 0; e < open.size() && in.max_duplicates; ++e) {
      if (!open[e] || quota[e] < static_cast<double>(*in.max_duplicates)) continue;
      counts[e] = static_cast<uint32_t>(*in.max_duplicates);
      left -= *in.max_duplicates;
      open[e] = false;
      changed = true;
    }
  }
  if (left == 0) return counts;

  std::vector<size_t> by_fraction;
  for (size_t e = 0; e < open.size(); ++e) {
    if (!open[e]) continue;
    counts[e] = static_cast<uint32_t>(quota[e]);
    left -= counts[e];
    by_fraction.push_back(e);
  }
  const auto fraction = [&](size_t e) { return quota[e] - std::floor(quota[e]); };
  std::ranges::sort(by_fraction, [&](size_t a, size_t b) {
    return std::tuple(-fraction(a), -in.scores[a], a) < std::tuple(-fraction(b), -in.scores[b], b);
  });
  COPPICE_CHECK(left <= by_fraction.size());
  for (size_t i = 0; i < left; ++i) ++counts[by_fraction[i]];
  return counts;
}

Counts waterfill(const SelectionInput& in) {
  struct Level {
    double score_per_copy;
    uint32_t copies;  // includes the original
    size_t expert;
  };
  const auto comes_later = [](const Level& a, const Level& b) {
    return std::tuple(-a.score_per_copy, a.copies, a.expert) > std::tuple(-b.score_per_copy, b.copies, b.expert);
  };
  std::priority_queue<Level, std::vector<Level>, decltype(comes_later)> levels(comes_later);
  for (size_t e = 0; e < in.scores.size(); ++e) levels.push({in.scores[e], 1, e});
  Counts counts(in.scores.size(), 0);
  for (int64_t i = 0; i < in.num_new; ++i) {
    const size_t e = levels.top().expert;
    levels.pop();
    if (++counts[e] != in.max_duplicates) levels.push({in.scores[e] / (counts[e] + 1.0), counts[e] + 1, e});
  }
  return counts;
}

constexpr SelectionRule kRules[] = {
    {.name = "uniform",
     .choose = uniform,
     .needs_scores = false,
     .default_cap = std::nullopt,
     .summary = "the same number of copies of every expert; remaining copies go to the lowest indices",
     .source = kPaper},
    {.name = "greedy",
     .choose = greedy,
     .needs_scores = true,
     .default_cap = kDefaultCap,
     .summary = "copies of the best expert up to the cap, then of the next best",
     .source = kPaper},
    {.name = "weighted_sampling",
     .choose = weighted_sampling,
     .needs_scores = true,
     .default_cap = kDefaultCap,
     .summary = "sampled with probabilities from a softmax of the standardised scores",
     .source = kPaper},
    {.name = "proportional",
     .choose = proportional,
     .needs_scores = true,
     .default_cap = kDefaultCap,
     .summary = "copies in proportion to the score, rounded by largest remainders",
     .source = kPaper},
    {.name = "waterfill",
     .choose = waterfill,
     .needs_scores = true,
     .default_cap = std::nullopt,
     .summary = "each copy goes to the expert with the highest score divided by its number of copies, itself included",
     .source = "D'Hondt's method of highest averages; siblings share their parent's tokens"},
};

void check_scores(std::span<const double> scores, const SelectionInput& in, int64_t experts) {
  COPPICE_CHECK(static_cast<int64_t>(scores.size()) == experts, scores.size(), " scores for ", experts, " experts");
  for (size_t e = 0; e < scores.size(); ++e) {
    if (std::isfinite(scores[e]) && scores[e] >= 0) continue;
    throw Error(ErrorCode::kNonFinite, cat("layer ", in.key.layer, ", expert ", e, ": the score is ", scores[e],
                                           "; scores must be finite and not negative (score the model again)"));
  }
}

}  // namespace

std::span<const SelectionRule> selection_rules() { return kRules; }

const SelectionRule& selection_rule(std::string_view name) { return find_row(selection_rules(), "select", name); }

std::vector<uint32_t> select_parents(const SelectionRule& rule, SelectionInput input, int64_t experts) {
  COPPICE_CHECK(experts > 0 && input.num_new >= 0);
  if (input.max_duplicates == uint64_t{0}) {
    throw Error(ErrorCode::kUsage, "max-duplicates: 0; wanted 1 or more");
  }
  if (!std::isfinite(input.temperature) || input.temperature <= 0) {
    throw Error(ErrorCode::kUsage, cat("temperature: ", input.temperature, "; wanted a number above 0"));
  }
  const std::vector<double> equal(static_cast<size_t>(experts), 1.0);
  if (!input.scores.empty()) check_scores(input.scores, input, experts);
  if (input.scores.empty() || std::ranges::max(input.scores) == 0) input.scores = equal;

  uint64_t dealt = 0;  // given to every expert, in whole rounds of the cap
  if (input.max_duplicates) {
    const auto each = static_cast<uint64_t>(input.num_new / experts);
    dealt = each / *input.max_duplicates * *input.max_duplicates;
    input.num_new -= static_cast<int64_t>(dealt) * experts;
  }
  auto counts = rule.choose(input);
  for (uint32_t& count : counts) count += static_cast<uint32_t>(dealt);
  return counts;
}

}  // namespace coppice::plan
