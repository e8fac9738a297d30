#include "coppice/api/engine.h"

#include "coppice/base/error.h"

namespace coppice::api {

Outcome Engine::function_change(const families::Model&, const families::Model&,
                                const std::map<int64_t, std::vector<int64_t>>&, const VerifyOptions&) const {
  throw Error(ErrorCode::kUnsupported,
              "function: this is the core build, without the engine that runs models; build the full one with `make "
              "build`, or leave --function out");
}

std::vector<std::pair<int64_t, double>> Engine::measure_steps(const families::ModelConfig&,
                                                              const cost::CostOptions&) const {
  throw Error(ErrorCode::kUnsupported,
              "measure: this is the core build, without the training engine; build the full one with `make build`, or "
              "give --step-time-before and --step-time-after");
}

}  // namespace coppice::api
