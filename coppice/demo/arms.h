#pragma once

#include <filesystem>

#include "coppice/demo/demo.h"
#include "coppice/demo/prepare.h"

namespace coppice::demo {

/// Trains every model of one seed under `directory` (trunk, scores.json, expanded, control, upcycled, scratch) and
/// measures them.
SeedResult run_seed(const DemoOptions& options, const PreparedData& data, uint64_t seed,
                    const std::filesystem::path& directory);

}  // namespace coppice::demo
