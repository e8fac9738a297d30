#pragma once

#include <cstdint>

#include "coppice/base/json.h"

namespace coppice::families::detail {

/// A configuration whose lists of modules, and maps by module, name all of `after` experts where they named all of
/// `before`: new experts like the others, experts that are gone no longer. Names of other towers stay as they are.
///
/// Throws   Error{kUnsupported} naming place and text: some experts are named and others not, or differently; or a text
///          names experts by number in another way than a module's name (a pattern, a range).
Json with_expert_names(const Json& json, int64_t before, int64_t after);

}  // namespace coppice::families::detail
