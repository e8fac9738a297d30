#pragma once

#include "coppice/methods/params.h"

namespace coppice::methods {

/// Whether an expert method with these parameters gives a child its parent's values: `drop_units:ratio=0`,
/// `scaled_copy:factor=1`. Found by applying it to a small expert that has values of every size.
///
/// Throws   Error{kUsage}: no such method or parameter.
bool changes_nothing(const MethodChoice& expert_method);

}  // namespace coppice::methods
