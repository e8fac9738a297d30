#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace coppice::step {

enum class ScheduleKind { kWsd, kCosine, kConstant };

/// Throws   Error{kUsage} with the nearest name.
ScheduleKind schedule_kind(std::string_view name);

/// The learning rate as a pure function of the step, so that a run may be stopped, branched and resumed anywhere.
struct Schedule {
  ScheduleKind kind = ScheduleKind::kWsd;
  double peak = 1e-3, min_ratio = 0.1;  ///< the last rate is peak * min_ratio
  int64_t steps = 0, warmup = 0;        ///< length of the whole schedule; linear warm-up from peak / warmup
  double anneal_share = 0.1;            ///< share of `steps`; only for kWsd

  /// After an expansion the rate is warmed up again, to a new peak if one is given; a cosine then falls from there.
  struct Restart {
    int64_t at = 0;      ///< step of the expansion
    int64_t warmup = 0;  ///< steps of linear warm-up after it
    double peak = 0;     ///< 0: the earlier peak
  };
  std::vector<Restart> restarts;  ///< in rising order

  /// The steps of the final annealing; 0 unless kWsd.
  int64_t anneal_steps() const;
  /// The rate of the update that ends in step `step` (1 .. steps).
  ///
  /// kWsd anneals by the factor 1 - (1 - min_ratio) * sqrt(share of the annealing done); of the shapes compared at
  /// equal cost, the square root ended with the lowest loss.
  /// Source   WSD: MiniCPM, arXiv:2404.06395; 1-sqrt: Haegele et al., arXiv:2405.18392. Cosine: SGDR, arXiv:1608.03983.
  double rate(int64_t step) const;
  /// Throws   Error{kUsage}: a value out of range, or warm-up and annealing longer than the run.
  void check() const;
};

}  // namespace coppice::step
