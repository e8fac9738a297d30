// read_config takes any JSON: it gives a configuration whose tensors can be listed and counted, and whose expert count
// can be rewritten, or an error about the input.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "coppice/base/error.h"
#include "coppice/families/match.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using coppice::ErrorCode;
  namespace families = coppice::families;
  families::ModelConfig config;
  try {
    config = families::read_config(coppice::Json::parse({reinterpret_cast<const char*>(data), size}, "input"), "input");
  } catch (const coppice::Error& e) {
    require(e.code == ErrorCode::kFormat || e.code == ErrorCode::kUnsupported);
    return 0;
  }
  require(config.num_layers >= 0 && config.num_experts >= 0 && config.top_k <= config.num_experts);
  if (config.num_layers * (config.num_experts + 1) <= 1024) {
    for (const auto& slot : families::expected_tensors(config)) require(!slot.name.empty());
  }
  if (!config.is_moe()) return 0;
  const auto grown = families::with_num_experts(config, 2 * config.num_experts);
  try {
    require(families::read_config(grown, "grown").num_experts == 2 * config.num_experts);
  } catch (const coppice::Error& e) {
    require(e.code == ErrorCode::kFormat);  // too many in all, or a number of groups that no longer fits
  }
  return 0;
}
