#pragma once

#include <vector>

#include "coppice/demo/demo.h"
#include "coppice/demo/prepare.h"
#include "coppice/report/html.h"

namespace coppice::demo {

/// Mean validation loss of every arm and, below, of every domain.
report::Table loss_table(const std::vector<SeedResult>& seeds);

/// The findings as sentences: jump, gap closure or why it is not given, compute saved.
std::vector<std::string> findings(const std::vector<SeedResult>& seeds);

/// report.html.
report::Page demo_page(const DemoOptions& options, const PreparedData& data, const std::vector<SeedResult>& seeds);

}  // namespace coppice::demo
