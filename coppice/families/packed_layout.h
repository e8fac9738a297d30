#pragma once

// The second layout of families: as in transformers 5's memory and in files written with save_original_format=False
// (the default of NeMo Automodel). The experts of a layer are packed, gate_up_proj [E, 2F, D] and down_proj [E, D, F],
// and some names differ (Family::memory_names).

#include <string>
#include <string_view>

#include "coppice/families/family.h"
#include "coppice/io/checkpoint.h"

namespace coppice::families {

struct ModelConfig;

/// The family with the tables of its second layout; nullptr if it has none: dense families, those with only one layout,
/// and family files, which describe one layout.
///
/// Memory   one copy per family for the life of the program.
const Family* packed_layout(const Family& family);

/// The layout of the checkpoint's experts, determined by all their names; the second only if no expert has the first
/// layout.
const Family& stored_layout(const ModelConfig& config, const io::Checkpoint& checkpoint);

/// A name of a tensor that is the same for every layout of its model: its name in the second layout, without the prefix
/// of multimodal models. Experts that a layout packs have no such name.
std::string name_in_any_layout(const ModelConfig& config, std::string_view name);

}  // namespace coppice::families
