#pragma once

// What a configuration says of quantised weights, in words, and how many values a stored element holds.

#include <cstdint>
#include <string>
#include <string_view>

#include "coppice/base/json.h"

namespace coppice::families::detail {

/// "compressed-tensors int4 (pack-quantized)", "gptq int4", "modelopt NVFP4"; empty without a quantization_config.
/// Looks at `part` (a text_config) first, then at the whole file.
std::string quantisation_text(const Json& config, const Json& part);

/// Bits of one quantised value; 0 if the configuration does not say.
int64_t quantised_bits(const Json& config, const Json& part);

/// True of the last part of a name under which formats store the packed values of a matrix: they stand for its weight.
bool holds_packed_values(std::string_view name);

/// The object that describes the quantisation, or nullptr.
const Json* find_quantization(const Json& config, const Json& part);

}  // namespace coppice::families::detail
