#pragma once

#include <string_view>

#include "coppice/api/outcome.h"
#include "coppice/convert/convert_options.h"

namespace coppice::api {

inline constexpr std::string_view kConvertSummary = "convert a dense model, or several, to a Mixture of Experts";

/// Does what `coppice convert` does.
///
/// Memory   constant: see output/write_model.h.
/// Throws   as convert::make_conversion_plan and convert::convert. Nothing is left under the final name.
Outcome convert(const convert::ConvertOptions& options);

}  // namespace coppice::api
