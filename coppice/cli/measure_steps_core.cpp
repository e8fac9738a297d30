#include "coppice/base/error.h"
#include "coppice/cli/measure_steps.h"

namespace coppice::cli {

std::vector<std::pair<int64_t, double>> measure_steps(const families::ModelConfig&, const cost::PlanOptions&) {
  throw Error(ErrorCode::kUnsupported,
              "measure: this is the core build, without the training engine; build the full one with `make build`, or "
              "give --step-time-before and --step-time-after");
}

}  // namespace coppice::cli
