#include "coppice/step/schedule.h"

#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::step {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorCode::kUsage, message); }

}  // namespace

ScheduleKind schedule_kind(std::string_view name) {
  if (name == "wsd") return ScheduleKind::kWsd;
  if (name == "cosine") return ScheduleKind::kCosine;
  if (name == "constant") return ScheduleKind::kConstant;
  refuse(cat("schedule.kind: '", name, "' is unknown",
             suggestion(name, std::vector<std::string>{"wsd", "cosine", "constant"})));
}

int64_t Schedule::anneal_steps() const {
  return kind == ScheduleKind::kWsd ? std::llround(anneal_share * static_cast<double>(steps)) : 0;
}

double Schedule::rate(int64_t step) const {
  Restart now{0, warmup, peak};
  for (const Restart& restart : restarts) {
    if (step > restart.at) now = {restart.at, restart.warmup, restart.peak > 0 ? restart.peak : now.peak};
  }
  const int64_t since = step - now.at;
  if (since <= now.warmup) return now.peak * static_cast<double>(since) / static_cast<double>(now.warmup);
  double fall = 0;  // 0 at the peak rate, 1 at the lowest
  if (kind == ScheduleKind::kCosine) {
    const double done = static_cast<double>(since - now.warmup) / static_cast<double>(steps - now.at - now.warmup);
    fall = 0.5 - 0.5 * std::cos(std::numbers::pi * done);
  } else if (const int64_t first = steps - anneal_steps(); step > first) {
    fall = std::sqrt(static_cast<double>(step - first) / static_cast<double>(steps - first));
  }
  return now.peak * (1.0 - (1.0 - min_ratio) * fall);
}

void Schedule::check() const {
  if (!(peak > 0 && peak <= std::numeric_limits<float>::max())) {
    refuse(cat("optimizer.lr: ", peak, "; wanted a number above 0 within the range of f32"));
  }
  if (!(min_ratio >= 0 && min_ratio <= 1)) {
    refuse(cat("schedule.min_lr_ratio: ", min_ratio, "; wanted a number from 0 to 1"));
  }
  if (!(anneal_share >= 0 && anneal_share <= 1)) {
    refuse(cat("schedule.anneal_share: ", anneal_share, "; wanted a number from 0 to 1"));
  }
  if (warmup < 0) refuse(cat("schedule.warmup: ", warmup, "; wanted 0 or more steps"));
  if (warmup + anneal_steps() > steps) {
    refuse(cat("schedule: ", warmup, " steps of warm-up and ", anneal_steps(), " of annealing do not fit into ", steps,
               " steps (set schedule.warmup or train.steps)"));
  }
  for (const Restart& restart : restarts) {
    if (restart.at + restart.warmup + anneal_steps() <= steps) continue;
    refuse(cat("growth at step ", restart.at, ": ", restart.warmup,
               " steps of rewarmup overlap the annealing, the last ", anneal_steps(), " of ", steps,
               " steps (expand earlier, or lower rewarmup)"));
  }
}

}  // namespace coppice::step
