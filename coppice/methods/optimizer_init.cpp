#include "coppice/methods/optimizer_init.h"

#include <algorithm>
#include <cmath>

#include "coppice/base/check.h"
#include "coppice/base/find_row.h"

namespace coppice::methods {
namespace {

constexpr std::string_view kPaper = "arXiv:2604.19835";

void reset(std::span<float> moment, const MomentContext&, const Params&) { std::ranges::fill(moment, 0.0f); }

void copy(std::span<float>, const MomentContext&, const Params&) {}  // `moment` holds the parent's

constexpr ParamSpec kShareParams[] = {{.key = "power",
                                       .fallback = 2.0,
                                       .lo = 0.0,
                                       .hi = 4.0,
                                       .help = "the second moment is divided by siblings^power: 2 keeps the size of "
                                               "the first update, 1 is its value after many steps"}};

/// Sets m / r and v / r^power, the moments of each of r siblings if they share their parent's tokens evenly.
void share(std::span<float> moment, const MomentContext& context, const Params& params) {
  const double power = context.moment == Moment::kFirst ? 1.0 : params.get("power");
  const auto factor = static_cast<float>(std::pow(static_cast<double>(context.num_siblings), -power));
  for (float& x : moment) x *= factor;
}

constexpr ParamSpec kScaleParams[] = {
    {.key = "factor", .fallback = 0.5, .lo = 0.0, .hi = 1.0, .help = "factor for a child that equals its parent"},
    {.key = "floor",
     .fallback = 0.1,
     .lo = 0.0,
     .hi = 1.0,
     .help = "lower limit of the additional factor for changed weights"}};

/// moment * factor * clamp(1 - mean|child - W| / mean|W|, floor, 1), for exp_avg and exp_avg_sq alike.
void scale(std::span<float> moment, const MomentContext& context, const Params& params) {
  const double alike = std::clamp(1.0 - context.weight_change, params.get("floor"), 1.0);
  const auto factor = static_cast<float>(params.get("factor") * alike);
  for (float& x : moment) x *= factor;
}

constexpr ParamSpec kInterpolateParams[] = {
    {.key = "alpha", .fallback = 0.5, .lo = 0.0, .hi = 1.0, .help = "weight of the next expert's moment"}};

/// Both weights are computed in fp32 and not negative, so a second moment stays non-negative.
void interpolate(std::span<float> moment, const MomentContext& context, const Params& params) {
  COPPICE_CHECK(context.next.size() == moment.size());
  const auto alpha = static_cast<float>(params.get("alpha"));
  const float rest = 1.0f - alpha;
  for (size_t i = 0; i < moment.size(); ++i) {
    const float own = rest * moment[i], others = alpha * context.next[i];
    moment[i] = own + others;
  }
}

constexpr OptimizerInit kMethods[] = {
    {.name = "reset",
     .apply = reset,
     .keeps_step = false,
     .needs_next = false,
     .needs_change = false,
     .touches_original = false,
     .computes = false,
     .params = {},
     .summary = "zero moments and step 0 for new experts",
     .source = kPaper},
    {.name = "copy",
     .apply = copy,
     .keeps_step = true,
     .needs_next = false,
     .needs_change = false,
     .touches_original = false,
     .computes = false,
     .params = {},
     .summary = "the parent's moments and step",
     .source = kPaper},
    {.name = "share",
     .apply = share,
     .keeps_step = true,
     .needs_next = false,
     .needs_change = false,
     .touches_original = true,
     .computes = true,
     .params = kShareParams,
     .summary = "the parent's moments divided among all its children, including the original",
     .source = "each of r siblings sees 1/r of the parent's tokens"},
    {.name = "scale",
     .apply = scale,
     .keeps_step = true,
     .needs_next = false,
     .needs_change = true,
     .touches_original = false,
     .computes = true,
     .params = kScaleParams,
     .summary = "the parent's moments scaled down, more where the copy's weights differ more",
     .source = kPaper},
    {.name = "interpolate",
     .apply = interpolate,
     .keeps_step = true,
     .needs_next = true,
     .needs_change = false,
     .touches_original = false,
     .computes = true,
     .params = kInterpolateParams,
     .summary = "the parent's moments mixed with the next expert's",
     .source = kPaper},
};

}  // namespace

std::string_view moment_name(Moment moment) { return moment == Moment::kFirst ? "exp_avg" : "exp_avg_sq"; }

std::span<const OptimizerInit> optimizer_inits() { return kMethods; }
const OptimizerInit& optimizer_init(std::string_view name) {
  return find_row(optimizer_inits(), "optimizer-state", name);
}

}  // namespace coppice::methods
