#pragma once

// The second layout of families: as transformers 5 has models in memory and writes them with save_original_format=False
// (NeMo Automodel writes it by default). The experts of a layer are packed, gate_up_proj [E, 2F, D] and
// down_proj [E, D, F], and some names differ (Family::memory_names).

#include <string>
#include <string_view>

#include "coppice/families/family.h"
#include "coppice/io/checkpoint.h"

namespace coppice::families {

struct ModelConfig;

/// The family with the tables of its second layout; nullptr if it has none: dense families, those that have one layout
/// only, and those of family files, which name the layout that they mean.
///
/// Memory   one copy a family for the life of the program.
const Family* packed_layout(const Family& family);

/// The layout that the checkpoint's experts have: told by all their names, the second only if no expert lies as in the
/// first.
const Family& stored_layout(const ModelConfig& config, const io::Checkpoint& checkpoint);

/// What a tensor is called in every layout of its model: the name that it has in the second one, without what multimodal
/// models put in front. Experts that a layout packs have no such name.
std::string name_in_any_layout(const ModelConfig& config, std::string_view name);

}  // namespace coppice::families
