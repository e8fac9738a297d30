#pragma once

#include <cstdint>

#include "coppice/base/json.h"

namespace coppice::families::detail {

/// The configuration with lists of modules, and maps by module, changed from `before` to `after` experts: new experts
/// are added like the others, removed ones are deleted. Names in other parts of a multimodal model do not change.
///
/// Throws   Error{kUnsupported} naming place and text: some experts are named and others not, or differently; or a text
///          names experts by number in another way than a module's name (a pattern, a range).
Json with_expert_names(const Json& json, int64_t before, int64_t after);

}  // namespace coppice::families::detail
