#pragma once

// What a plan needs to know of a model, from Python: its Hugging Face configuration, or what its modules say.

#include <string_view>

#include "coppice/families/model_config.h"

namespace coppice::python {

/// `text` is a JSON object: {"config": config.json of a Hugging Face model}, or {"modules": {...}} with the keys that
/// docs/in_your_run.md lists, for a model without one.
///
/// Throws   Error{kFormat, kUnsupported}, as families::read_config.
families::ModelConfig described_model(std::string_view text);

}  // namespace coppice::python
