#include "coppice/cli/engine.h"

namespace coppice::cli {

const api::Engine& engine() {
  static const api::Engine kNone;
  return kNone;
}

}  // namespace coppice::cli
