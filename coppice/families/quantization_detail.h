#pragma once

// Describes the quantisation in a configuration as text, and the number of values per stored element.

#include <cstdint>
#include <string>
#include <string_view>

#include "coppice/base/json.h"

namespace coppice::families::detail {

/// "compressed-tensors int4 (pack-quantized)", "gptq int4", "modelopt NVFP4"; empty without a quantization_config.
/// Looks at `section` (a text_config) first, then at the whole file.
std::string quantisation_text(const Json& config, const Json& section);

/// Bits of one quantised value; 0 if the configuration does not say.
int64_t quantised_bits(const Json& config, const Json& section);

/// Whether formats use this last part of a name for the packed values of a matrix, in place of its weight.
bool holds_packed_values(std::string_view name);

/// The object that describes the quantisation; nullptr if there is none.
const Json* find_quantization(const Json& config, const Json& section);

}  // namespace coppice::families::detail
