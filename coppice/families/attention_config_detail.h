#pragma once

// The keys of attention, positions and activation, after the sizes were read.

#include <string_view>

#include "coppice/families/config_reader_detail.h"
#include "coppice/families/model_config.h"

namespace coppice::families::detail {

bool read_switch(const ConfigReader& in, const Switch& s);

/// Fills everything of `c` that attention and feed-forward layers compute by.
///
/// Throws   Error{kFormat} naming file and key.
void read_attention(const Json& config, std::string_view source, ModelConfig& c);

}  // namespace coppice::families::detail
