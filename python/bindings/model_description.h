#pragma once

// What a plan needs to know of a model, from Python: its Hugging Face configuration, or what its modules say.

#include <cstdint>
#include <string_view>
#include <vector>

#include "coppice/families/model_config.h"

namespace coppice::python {

struct ModelDescription {
  families::ModelConfig config;
  std::vector<int64_t> layers_with_experts;  ///< in rising order, those past num_layers too
};

/// `text` is a JSON object: {"config": config.json of a Hugging Face model, "layers": those with experts, if the model
/// in memory says them}, or {"modules": {...}} with the keys of `of_modules`, for a model without a configuration.
///
/// Throws   Error{kFormat, kUnsupported}, as families::read_config.
ModelDescription described_model(std::string_view text);

}  // namespace coppice::python
