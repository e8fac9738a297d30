#include "coppice/base/error.h"
#include "coppice/cli/engine.h"

namespace coppice::cli {

Printed function_change(const families::Model&, const families::Model&, const std::map<int64_t, std::vector<int64_t>>&,
                        const eval::FunctionSettings&) {
  throw Error(ErrorCode::kUnsupported,
              "function: this is the core build, without the engine that runs models; build the full one with `make "
              "build`, or leave --function out");
}

std::vector<std::pair<int64_t, double>> measure_steps(const families::ModelConfig&, const cost::CostOptions&) {
  throw Error(ErrorCode::kUnsupported,
              "measure: this is the core build, without the training engine; build the full one with `make build`, or "
              "give --step-time-before and --step-time-after");
}

}  // namespace coppice::cli
