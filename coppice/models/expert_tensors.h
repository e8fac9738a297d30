#pragma once

// The tensors of one expert in any layout: tensors of its own, or slices of stacked ones.

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/models/expert_layout.h"

namespace coppice::models {

/// A tensor, or a slice of a stacked one, that belongs to one expert. Points into the model.
struct ExpertTensor {
  const families::TensorSlot* slot = nullptr;
  io::Checkpoint::Entry entry;
  ExpertSlice slice;

  std::span<const std::byte> data() const { return entry.data().subspan(slice.offset, slice.bytes); }
  /// Tells the kernel that `bytes` of the slice, from `offset` on, are no longer needed.
  void release(uint64_t offset, uint64_t bytes) const;
};

/// The tensors of every expert of a model, which must outlive this object.
///
/// Memory   a pointer for each tensor of experts.
class ExpertTensors {
 public:
  explicit ExpertTensors(const families::Model& model);

  /// In the order of the table; the same for every expert of a layer, and for an expanded model the same as before.
  std::vector<ExpertTensor> of(int64_t layer, int64_t expert) const;
  const families::Model& model() const { return model_; }

 private:
  const families::Model& model_;
  std::map<std::pair<int64_t, int64_t>, std::vector<const families::TensorSlot*>> slots_;  // expert -1: stacked
};

}  // namespace coppice::models
