#include "coppice/families/expert_norms.h"

#include <cmath>

#include "coppice/base/check.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/base/thread_pool.h"

namespace coppice::families {

namespace {

double norm(std::span<const float> values) {
  double squares = 0;
  for (const float value : values) squares += double{value} * double{value};
  return std::sqrt(squares);
}

double& member(ExpertNorms& norms, Role role) {
  switch (role) {
    case Role::kExpertGate: return norms.gate;
    case Role::kExpertUp: return norms.up;
    case Role::kExpertDown: return norms.down;
    default: COPPICE_CHECK(false, role_name(role));
  }
}

}  // namespace

std::map<int64_t, std::vector<ExpertNorms>> expert_norms(const Model& model, size_t threads) {
  std::map<int64_t, std::vector<ExpertNorms>> norms;
  std::vector<const TensorSlot*> slots;
  uint64_t bytes = 0;
  for (const TensorSlot& slot : model.slots) {
    if (!is_expert(slot.role()) && slot.role() != Role::kRouter) continue;
    norms[slot.layer].resize(static_cast<size_t>(model.config.num_experts));
    slots.push_back(&slot);
    bytes += model.checkpoint.at(slot.name).info->bytes;
  }

  Progress progress("norms", bytes, ProgressUnit::kBytes);
  parallel_for(slots.size(), threads, [&](size_t i) {
    check_interrupt();
    const TensorSlot& slot = *slots[i];
    const auto entry = model.checkpoint.at(slot.name);
    const std::vector<float> values = model.checkpoint.read_f32(slot.name);
    entry.file->release(*entry.info);
    auto& layer = norms.at(slot.layer);
    if (is_expert(slot.role())) {
      member(layer[static_cast<size_t>(slot.expert)], slot.role()) = norm(values);
    } else {
      const size_t width = values.size() / layer.size();
      for (size_t e = 0; e < layer.size(); ++e) layer[e].router = norm(std::span(values).subspan(e * width, width));
    }
    progress.advance(entry.info->bytes);
  });
  return norms;
}

}  // namespace coppice::families
