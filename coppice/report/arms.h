#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "coppice/report/run_record.h"

namespace coppice::report {

/// The values of a run that are compared. NaN or 0 if the files do not contain them.
struct RunSummary {
  int64_t experts_before = 0, experts_after = 0;  ///< experts of the model at its start and at its end
  double tokens_before = 0, tokens_after = 0;     ///< tokens seen before its first step and after its last
  struct Growth {
    double tokens;          ///< tokens seen until then; NaN if not known
    int64_t before, after;  ///< experts
  };
  std::vector<Growth> growths;         ///< expansions during the run, or the one that it began from
  double growth_tokens;                ///< tokens seen at the last expansion (tau); NaN if there was none
  double step_s_before, step_s_after;  ///< median seconds per step with each number of experts
  double batch_tokens = 0;
  int64_t seed = 0;
  double loss;                               ///< mean of the last 10 training losses
  std::map<std::string, double> validation;  ///< last value of each validation/<file>
  double active_parameters;

  bool grew() const { return growth_tokens == growth_tokens; }
};
RunSummary summarise(const RunRecord& run);

/// Three runs on the same tokens: E experts throughout, E expanded to N, N throughout.
struct Comparison {
  std::string upcycled, control, fixed;  ///< names of the runs; `fixed` may be empty
  int64_t seed = 0, experts_before = 0, experts_after = 0;
  double tokens_before = 0, tokens_total = 0;  ///< tau and T
  double loss_control = 0, loss_upcycled = 0,
         loss_fixed;  ///< mean validation loss over the files that all arms have, else training loss
  bool is_validation = false;
  std::map<std::string, double> gain_by_file;  ///< L_E - L_up of each validation file
  double step_s_before, step_s_after;

  double gain() const { return loss_control - loss_upcycled; }
  double gap() const { return loss_control - loss_fixed; }  ///< NaN without `fixed`
  double eta() const { return gain() / gap(); }
  double cpt_share() const { return (tokens_total - tokens_before) / tokens_before; }
};
/// Compares every expanded run with its controls. Controls have the same seed and the same number of tokens: one keeps
/// the number of experts before the expansion, and one is trained from scratch with the number after it.
std::vector<Comparison> compare_arms(const std::vector<RunRecord>& runs);

struct Spread {
  double mean = 0, low = 0, high = 0;
  double standard_error = 0;  ///< standard error of the mean; NaN for one value
};
Spread spread(const std::vector<double>& values);

/// Gap closure over seeds: `mean` is the mean gain divided by the mean gap, because a mean of ratios is dominated by the
/// seed with the smallest gap; `low` and `high` are those of single seeds; the standard error is that of a ratio of means,
/// to first order.
Spread closure(const std::vector<double>& gains, const std::vector<double>& gaps);

/// Comparisons that differ in the seed alone.
struct ArmGroup {
  std::vector<Comparison> seeds;
  Spread gain, gap, eta;  ///< gap and eta: NaN unless every seed has the run with N experts from scratch
  bool eta_is_reliable() const { return gap.mean > 3 * gap.standard_error; }  ///< as in the demo; false for one seed
};
std::vector<ArmGroup> group_arms(const std::vector<Comparison>& comparisons);

}  // namespace coppice::report
