#include "coppice/methods/expert_init.h"

#include <array>

#include "coppice/base/check.h"
#include "coppice/base/find_row.h"
#include "coppice/methods/expert_rows_detail.h"
#include "coppice/methods/purpose.h"

namespace coppice::methods {

Rng ChildKey::tensor_rng(families::Role role, uint32_t purpose) const {
  return Rng({.seed = seed,
              .layer = static_cast<uint32_t>(layer),
              .role = static_cast<uint32_t>(role),
              .parent = parent,
              .copy = stream_copy(num_experts, copy),
              .purpose = purpose});
}

Rng ChildKey::expert_rng(uint32_t purpose) const { return tensor_rng(families::Role::kExpertShared, purpose); }

uint32_t ChildKey::next() const {
  COPPICE_CHECK(num_experts > 1);
  return static_cast<uint32_t>((parent + 1) % num_experts);
}

uint32_t ChildKey::partner() const {
  COPPICE_CHECK(num_experts > 1);
  const auto other = static_cast<uint32_t>(expert_rng(kPartner).below(0, static_cast<uint64_t>(num_experts - 1)));
  return other < parent ? other : other + 1;
}

std::span<const ExpertInit> expert_inits() {
  static const std::array kMethods = {kCopy,           kCopyNoise,    kDropUpcycle, kDropUnits,
                                      kShuffleColumns, kPermuteUnits, kInterpolate, kOrthogonal,
                                      kScaledCopy,     kSvdPerturb,   kSvdMix,      kSparseCodeMix};
  return kMethods;
}

const ExpertInit& expert_init(std::string_view name) { return find_row(expert_inits(), "expert-init", name); }

}  // namespace coppice::methods
