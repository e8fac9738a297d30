// A file of timed collectives: any text gives points from which a usable link is fitted, or Error{kFormat}.
#include <cmath>

#include "coppice/cost/link_fit.h"
#include "fuzz/fuzzed.h"

using coppice::fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto points = coppice::cost::parse_points({reinterpret_cast<const char*>(data), size}, "input");
    const auto fit = coppice::cost::fit_link(points);
    require(std::isfinite(fit.link.bytes_per_s) && fit.link.bytes_per_s > 0);
    require(std::isfinite(fit.link.latency_s) && fit.link.latency_s >= 0);
    require(fit.worst_error >= 0);
  } catch (const coppice::Error& e) {
    require(e.code == coppice::ErrorCode::kFormat);
  }
  return 0;
}
