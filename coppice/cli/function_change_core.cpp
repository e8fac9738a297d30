#include "coppice/base/error.h"
#include "coppice/cli/function_change.h"

namespace coppice::cli {

FunctionChange function_change(const families::Model&, const families::Model&,
                               const std::map<int64_t, std::vector<int64_t>>&, const FunctionSettings&) {
  throw Error(ErrorCode::kUnsupported,
              "function: this is the core build, without the engine that runs models; build the full one with `make "
              "build`, or leave --function out");
}

}  // namespace coppice::cli
