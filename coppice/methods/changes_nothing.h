#pragma once

#include "coppice/methods/params.h"

namespace coppice::methods {

/// Whether an expert method with these parameters leaves the parent's values unchanged: `drop_units:ratio=0`,
/// `scaled_copy:factor=1`. It is applied to a small test expert with values of all magnitudes.
///
/// Throws   Error{kUsage}: no such method or parameter.
bool changes_nothing(const MethodChoice& expert_method);

}  // namespace coppice::methods
