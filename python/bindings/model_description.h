#pragma once

// What a plan needs to know of a model, from Python: its Hugging Face configuration, or what its modules say.

#include <cstdint>
#include <string_view>
#include <vector>

#include "coppice/families/match.h"

namespace coppice::python {

struct ModelDescription {
  families::ModelConfig config;
  std::vector<families::TensorSlot> slots;   ///< of experts and routers; empty without "tensors"
  std::vector<int64_t> layers_with_experts;  ///< in rising order, those past num_layers too; empty without "tensors"
};

/// `text` is a JSON object: {"config": config.json of a Hugging Face model, "tensors": [[name, shape] ...] of the model in
/// transformers' memory, if there is one}, or {"modules": {...}} with the keys of `of_modules`, for a model without a
/// configuration.
///
/// Throws   Error{kFormat, kUnsupported, kShape}, as families::read_config and slots_in_memory.
ModelDescription described_model(std::string_view text);

}  // namespace coppice::python
