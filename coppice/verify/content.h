#pragma once

#include "coppice/base/progress.h"
#include "coppice/verify/verify.h"

namespace coppice::verify {

/// Accounts for the tensors of an expanded model by their content alone: what lies outside experts and routers is bit for bit
/// as before, parents are recognised (recognise.h), an optimizer state has the shapes of the model.
///
/// Memory   recognise_layer.
/// Threads  the same result for any number.
void verify_by_content(const families::Model& before, const families::Model& after, size_t threads, Progress& progress,
                       VerifyResult& result);

}  // namespace coppice::verify
