#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "coppice/methods/params.h"

namespace coppice::methods {

enum class Moment { kFirst, kSecond };
/// exp_avg or exp_avg_sq, as Adam's moments are called in files.
std::string_view moment_name(Moment moment);

/// The input of an optimizer strategy for one child's matrix (or router row).
struct MomentContext {
  Moment moment = Moment::kFirst;
  uint32_t copy = 1;            ///< 0: the original
  uint32_t num_siblings = 1;    ///< r, the original included
  double weight_change = 0;     ///< mean|child - W| / mean|W|
  std::span<const float> next;  ///< the next expert's moment (interpolate); empty unless `needs_next`
};

struct OptimizerInit {
  std::string_view name;
  /// Changes `moment`, which holds the parent's moment, to the child's.
  void (*apply)(std::span<float> moment, const MomentContext& context, const Params& params);
  bool keeps_step;        ///< the child keeps its parent's step count; otherwise it starts at 0
  bool needs_next;        ///< reads MomentContext::next
  bool needs_change;      ///< reads MomentContext::weight_change
  bool touches_original;  ///< also called for copy 0
  bool computes;          ///< computes with moments, which must then be finite; otherwise it copies or drops them
  std::span<const ParamSpec> params;
  std::string_view summary, source;
};
std::span<const OptimizerInit> optimizer_inits();
const OptimizerInit& optimizer_init(std::string_view name);  // Throws Error{kUsage}

}  // namespace coppice::methods
