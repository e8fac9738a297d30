#pragma once

namespace coppice::cost {

/// Seconds of one optimizer step with E experts and with N, on the same batch.
struct StepTimes {
  double before_s = 0, after_s = 0;
  double ratio() const { return before_s / after_s; }  ///< s_E / s_N
};

/// The time of each way to a model that has seen T = tau + CPT tokens, in units of `tokens` times seconds per step.
///
/// Source   arXiv:2604.19835v2 section 3: C_fs = T s_N, C_up = tau s_E + (T - tau) s_N.
struct RunCosts {
  double fixed = 0;            ///< N experts from the first token
  double upcycled = 0;         ///< E experts, expanded, N experts
  double from_checkpoint = 0;  ///< the same, if a checkpoint after the first part exists
  double continued = 0;        ///< E experts to the end: the smaller model

  double saving() const { return 1 - upcycled / fixed; }  ///< = (tau / T) (1 - s_E / s_N)
  double sunk_saving() const { return 1 - from_checkpoint / fixed; }
};
RunCosts run_costs(const StepTimes& steps, double tokens_before, double tokens_after);

/// tau / T of a CPT share f = (T - tau) / tau.
inline double growth_point(double cpt_share) { return 1 / (1 + cpt_share); }

}  // namespace coppice::cost
