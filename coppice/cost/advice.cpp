// Advice from the numbers of a estimate: when to expand, and when it does not pay.

#include <cmath>

#include "coppice/base/text.h"
#include "coppice/cost/advice_detail.h"

namespace coppice::cost::detail {
namespace {

// arXiv:2604.19835v2 section 5.1: after 22 B tokens of CPT on 380 B the expanded model was below the smaller one.
constexpr double kRecovery = 22.0 / 380.0;
// Table 2a (T fixed): eta 81 % at tau/T = .05, 100 % from .13 to .38, 98 % at .51.
constexpr double kEarliest = 0.12, kLatest = 0.40;
constexpr double kUtilityOnly = 0.25, kPartial = 0.5;
constexpr double kSameTime = 0.05;  // relative difference of step times that a measurement cannot distinguish

void advise_on_time(CostEstimate& estimate) {
  const double longer = estimate.steps.after_s / estimate.steps.before_s - 1;
  const int64_t e = estimate.before.experts, n = estimate.after.experts;
  auto& against = estimate.does_not_pay;
  if (longer < kSameTime) {
    against.push_back(cat("Against ", n, " experts from the first token it saves almost no time: a step takes ",
                          longer <= 0 ? "no longer" : cat("only ", percent(longer, 1), " longer"), " than with ", e,
                          ". If you have no checkpoint yet, start with ", n, "."));
  } else {
    against.push_back(cat("The saving depends on your cluster: a step takes ", percent(longer, 0), " longer with ", n,
                          " experts than with ", e,
                          "; if it were 0 %, only the tokens of an existing checkpoint would be saved."));
    against.push_back(cat("Continuing with ", e, " experts sees ", fixed_text(1 + longer, 2),
                          " times the tokens in the same time; expand if the model lacks capacity, not data."));
  }
}

void advise_on_share(CostEstimate& estimate) {
  if (!estimate.tokens_before || !estimate.tokens_after) return;
  const double share = *estimate.tokens_after / *estimate.tokens_before;
  const double eta = estimate.closure.eta(share);
  auto& against = estimate.does_not_pay;
  if (share < kRecovery) {
    against.push_back(cat("Your continued pre-training is ", percent(share, 1),
                          " of the tokens before: too short. The paper's model needed ", percent(kRecovery, 1),
                          " to fall below the smaller model again."));
  } else if (eta < 0.5) {
    against.push_back(cat("Your continued pre-training closes about ", percent(eta, 0),
                          " of the gap: less than half of the gain of ", estimate.after.experts,
                          " experts from the first token."));
  }
}

void advise_on_limits(CostEstimate& estimate) {
  auto& against = estimate.does_not_pay;
  if (estimate.uniform_closure && estimate.after.experts > 2 * estimate.before.experts) {
    against.push_back(
        cat(estimate.before.experts, " -> ", estimate.after.experts,
            " is more than doubling, but the published curve was measured only for doubling; expect less."));
  }
  if (estimate.closure.at_bound) {
    against.push_back(estimate.closure.f0 < 1
                          ? "Your runs closed the whole gap, so f0 is too small to be measured."
                          : "Your runs closed nothing of the gap; by these runs, expanding does not pay.");
  }
  if (estimate.loss_gap) {
    against.push_back(cat("At best, eta = 100 %, it gains ", number_text(*estimate.loss_gap, 3), " nats."));
  } else {
    against.push_back("The gap in nats is not known (give --loss-gap, or --fit with runs of both sizes).");
  }
  const double memory =
      static_cast<double>(estimate.memory_after.total()) / static_cast<double>(estimate.memory_before.total());
  against.push_back(cat("Serving: the same FLOPs per token, but ", fixed_text(memory, 2), " times the memory."));
}

void say_when(CostEstimate& estimate, double target) {
  const double share = estimate.closure.share_for(target);
  estimate.when.push_back(cat("If E is still to be trained: expand at ", percent(kEarliest, 0), " to ",
                              percent(kLatest, 0),
                              " of the budget to close the full gap; later closes less and saves more time."));
  estimate.when.push_back(
      cat("Latest point for eta = ", percent(target, 0), " by the curve: at ", percent(growth_point(share), 0),
          " of the budget, which is continued pre-training of ", percent(share, 0), " of the tokens before",
          estimate.tokens_before ? cat(": ", count_text(share * *estimate.tokens_before), " tokens") : std::string(),
          "; this saves ", percent(growth_point(share) * (1 - estimate.steps.ratio()), 1), " of the time."));
  estimate.when.emplace_back(
      "Expand a checkpoint from before the annealing (the stable phase of WSD), and anneal at the end.");
  estimate.constants.push_back({"when to expand",
                                cat("tau/T ", number_text(kEarliest, 2), " to ", number_text(kLatest, 2)),
                                "arXiv:2604.19835v2 table 2a: eta 81, 100, 100, 100, 98 % at .05, .13, .25, .38, .51"});
  estimate.constants.push_back({"recovery", percent(kRecovery, 1),
                                "arXiv:2604.19835v2 section 5.1: below the smaller model after 22 B of 380 B tokens"});
}

}  // namespace

std::string remark_on_share(double cpt_share, double eta, bool is_published) {
  if (cpt_share < kRecovery) return "too short to recover";
  if (!is_published) return eta < 0.5 ? "less than half of the gap" : "";
  if (cpt_share < kUtilityOnly) return "only with utility scores";
  if (cpt_share < kPartial) return "partial closure";
  return "";
}

void advise(CostEstimate& estimate, double target_closure) {
  advise_on_time(estimate);
  advise_on_share(estimate);
  advise_on_limits(estimate);
  say_when(estimate, target_closure);
}

}  // namespace coppice::cost::detail
