#pragma once

#include <filesystem>
#include <optional>

#include "coppice/base/json.h"
#include "coppice/upcycle/plan.h"

namespace coppice::upcycle {

inline constexpr const char* kLineageFile = "coppice.json";

/// The lineage of `directory` with one expansion appended (design.md section 3); starts one if there is none.
/// Throws   Error{kFormat} if an existing coppice.json is no lineage.
Json extend_lineage(const std::optional<Json>& before, const GrowthPlan& plan, std::string_view command, std::string_view source_digest);

/// coppice.json of a model directory, if there is one. Throws Error{kFormat}.
std::optional<Json> read_lineage(const std::filesystem::path& model);

/// parents[layer] -> [N] of the newest step.
std::optional<std::map<int64_t, std::vector<uint32_t>>> newest_parents(const Json& lineage);

}  // namespace coppice::upcycle
