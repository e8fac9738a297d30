#pragma once

#include <optional>
#include <vector>

#include "coppice/report/html.h"
#include "coppice/report/run_record.h"

namespace coppice::report {

/// The page of `coppice report RUN...`. A section appears if there is data for it.
///
/// `plan`: output of `coppice plan --json`, to be compared with what happened.
/// Throws   Error{kFormat} naming a file beside the runs, or `plan`, that is not valid.
Page runs_page(const std::vector<RunRecord>& runs, const std::optional<Json>& plan = std::nullopt);

}  // namespace coppice::report
