#pragma once

#include <string>
#include <string_view>

#include "coppice/api/outcome.h"
#include "coppice/grow/expand_options.h"

namespace coppice::api {

inline constexpr std::string_view kExpandSummary = "add experts to every MoE layer of a checkpoint";

/// Does what `coppice expand` does.
///
/// Memory   constant: see output/write_model.h.
/// Throws   as grow::requested_plan and grow::expand. Nothing is left under the final name.
Outcome expand(const grow::ExpandOptions& options);

/// The plan that the options ask for, as TOML that --plan reads, below comments with what it would do. Writes nothing.
std::string plan_of(const grow::ExpandOptions& options);

}  // namespace coppice::api
