#pragma once

// The parts of one expert in any layout: tensors of its own, or slices of stacked ones.

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "coppice/families/expert_layout.h"
#include "coppice/families/match.h"

namespace coppice::families {

/// A tensor, or a slice of a stacked one, that belongs to one expert. Points into the model.
struct ExpertPart {
  const TensorSlot* slot = nullptr;
  io::Checkpoint::Entry entry;
  ExpertSlice slice;

  std::span<const std::byte> data() const { return entry.data().subspan(slice.offset, slice.bytes); }
  /// Tells the kernel that `bytes` of the slice, from `offset` on, are no longer needed.
  void release(uint64_t offset, uint64_t bytes) const;
};

/// The parts of every expert of a model, which must outlive this object.
///
/// Memory   a pointer for each tensor of experts.
class ExpertParts {
 public:
  explicit ExpertParts(const Model& model);

  /// In the order of the table; the same for every expert of a layer, and for an expanded model the same as before.
  std::vector<ExpertPart> of(int64_t layer, int64_t expert) const;
  const Model& model() const { return model_; }

 private:
  const Model& model_;
  std::map<std::pair<int64_t, int64_t>, std::vector<const TensorSlot*>> slots_;  // expert -1: stacked
};

}  // namespace coppice::families
