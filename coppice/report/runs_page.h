#pragma once

#include <optional>
#include <vector>

#include "coppice/report/html.h"
#include "coppice/report/run_record.h"

namespace coppice::report {

/// The page of `coppice report RUN...`. Sections are there where their data is.
///
/// `plan`: what `coppice plan --json` printed, to be held against what happened.
/// Throws   Error{kFormat} naming what of the files beside the runs, or of `plan`, is not what it says it is.
Page runs_page(const std::vector<RunRecord>& runs, const std::optional<Json>& plan = std::nullopt);

}  // namespace coppice::report
