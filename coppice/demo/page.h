#pragma once

#include <vector>

#include "coppice/demo/demo.h"
#include "coppice/demo/prepare.h"
#include "coppice/report/html.h"

namespace coppice::demo {

/// report.html: the result in a sentence and one chart; below it tables, charts of domains and experts, and settings.
report::Page demo_page(const DemoOptions& options, const PreparedData& data, const std::vector<SeedResult>& seeds);

}  // namespace coppice::demo
