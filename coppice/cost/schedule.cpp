#include "coppice/cost/schedule.h"

namespace coppice::cost {

RunCosts run_costs(const StepTimes& steps, double tokens_before, double tokens_after) {
  const double total = tokens_before + tokens_after;
  return {.fixed = total * steps.after_s,
          .upcycled = tokens_before * steps.before_s + tokens_after * steps.after_s,
          .from_checkpoint = tokens_after * steps.after_s,
          .continued = total * steps.before_s};
}

}  // namespace coppice::cost
