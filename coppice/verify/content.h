#pragma once

#include "coppice/base/progress.h"
#include "coppice/verify/verify.h"

namespace coppice::verify {

/// Checks the tensors of an expanded model by their content only: tensors outside experts and routers are bit-equal to
/// those before, parents are recognised (recognise.h), and an optimizer state has the shapes of the model.
///
/// Memory   as recognise_layer.
/// Threads  the result does not depend on the number of threads.
void verify_by_content(const families::Model& before, const families::Model& after, size_t threads, Progress& progress,
                       VerifyResult& result);

}  // namespace coppice::verify
