#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/report/arms.h"

namespace coppice::demo {

/// One trained model of a seed, measured after training on every domain's validation text.
struct ArmResult {
  std::map<std::string, double> loss;            ///< domain -> nats per token
  double seconds_per_step = 0;                   ///< median
  double train_seconds = 0;                      ///< wall time of its training loop
  int64_t steps = 0;                             ///< trained in this arm
  std::vector<std::pair<double, double>> curve;  ///< (tokens seen, mean validation loss)
  std::map<std::string, std::vector<std::vector<double>>>
      expert_share;  ///< domain -> [MoE layer][expert], share of (token, slot) pairs

  double mean_loss() const;  ///< over domains
  Json to_json() const;
  static ArmResult from_json(const Json& json);
};

/// What one seed gave. The trunk is the E-expert model at the expansion; all others have seen the same number of
/// tokens.
struct SeedResult {
  uint64_t seed = 0;
  ArmResult trunk, expanded, control, upcycled, scratch;
  std::map<int64_t, double> sibling_cosine;    ///< MoE layer -> mean cosine of the weights of siblings after training
  std::map<int64_t, double> sibling_distance;  ///< MoE layer -> mean |a - b| / |a|
  double surgery_seconds = 0;                  ///< score, expand and verify

  double jump() const { return expanded.mean_loss() - trunk.mean_loss(); }
  double gap() const { return control.mean_loss() - scratch.mean_loss(); }  ///< L_E - L_N at equal tokens
  double gain() const { return control.mean_loss() - upcycled.mean_loss(); }
  double eta() const { return gain() / gap(); }
  /// Share of the training time of N experts from scratch that growing late saves: (tau/T) (1 - s_E/s_N) with s the
  /// median step times. Source: arXiv:2604.19835 section 3
  double predicted_saving() const;
  double measured_saving() const;  ///< the same by the clock: 1 - (trunk + surgery + upcycled) / scratch
  Json to_json() const;
  static SeedResult from_json(const Json& json);
};

using report::Spread;
using report::spread;

/// Gap closure is a ratio: it means something only where its denominator is told apart from zero.
struct GapClosure {
  Spread gap, eta;
  bool reliable = false;  ///< mean gap > 3 standard errors over seeds
};
GapClosure gap_closure(const std::vector<SeedResult>& seeds);

}  // namespace coppice::demo
