#pragma once

#include <vector>

#include "coppice/report/html.h"
#include "coppice/report/run_record.h"

namespace coppice::report {

/// The page of `coppice report RUN...`.
Page runs_page(const std::vector<RunRecord>& runs);

}  // namespace coppice::report
