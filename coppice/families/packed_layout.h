#pragma once

// The second layout of families: as in transformers 5's memory and in files written with save_original_format=False
// (the default of NeMo Automodel). The experts of a layer are packed, gate_up_proj [E, 2F, D] and down_proj [E, D, F],
// and some names differ (Family::memory_names).

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/families/family.h"
#include "coppice/families/match.h"
#include "coppice/io/checkpoint.h"

namespace coppice::families {

/// The family with the tables of its second layout; nullptr if it has none: dense families, those with only one layout,
/// and family files, which describe one layout.
///
/// Memory   one copy per family for the life of the program.
const Family* packed_layout(const Family& family);

/// The layout of the checkpoint's experts, determined by all their names; the second only if no expert has the first
/// layout.
const Family& stored_layout(const ModelConfig& config, const io::Checkpoint& checkpoint);

/// The experts and the rows of routers among the tensors of a model in transformers' memory, in whichever layout it has
/// them. Other tensors have no slot, whatever their names; nor has any tensor of a dense model.
///
/// Throws   Error{kFormat}: a layer lacks experts or router rows, or some of them; Error{kShape}: another shape than the
///          configuration says. Both list all.
std::vector<TensorSlot> slots_in_memory(const ModelConfig& config, std::span<const io::TensorInfo> tensors);

/// A name of a tensor that is the same for every layout of its model: its name in the second layout, without the prefix
/// of multimodal models. Experts that a layout packs have no such name.
std::string name_in_any_layout(const ModelConfig& config, std::string_view name);

}  // namespace coppice::families
