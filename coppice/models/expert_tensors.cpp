#include "coppice/models/expert_tensors.h"

namespace coppice::models {

using families::Model;
using families::TensorSlot;

void ExpertTensor::release(uint64_t offset, uint64_t bytes) const {
  io::TensorInfo window = *entry.info;
  window.offset += slice.offset + offset;
  window.bytes = bytes;
  entry.file->release(window);
}

ExpertTensors::ExpertTensors(const Model& model) : model_(model) {
  for (const TensorSlot& slot : model.stored_slots()) {
    if (is_expert(slot.role())) slots_[{slot.layer, slot.expert}].push_back(&slot);
  }
}

std::vector<ExpertTensor> ExpertTensors::of(int64_t layer, int64_t expert) const {
  std::vector<ExpertTensor> tensors;
  for (const int64_t owner : {expert, int64_t{-1}}) {
    const auto found = slots_.find({layer, owner});
    if (found == slots_.end()) continue;
    for (const TensorSlot* slot : found->second) {
      const auto entry = model_.checkpoint.at(slot->name);
      tensors.push_back({slot, entry, expert_slice(*slot, entry.info->bytes, model_.config.num_experts, expert)});
    }
  }
  return tensors;
}

}  // namespace coppice::models
