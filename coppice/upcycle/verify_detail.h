#pragma once

#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/match.h"
#include "coppice/upcycle/output_tensors.h"

namespace coppice::upcycle::detail {

/// Reports each key whose value differs, down to the innermost.
void compare_objects(const Json& wanted, const Json& found, const std::string& inside,
                     std::vector<std::string>& problems);

/// What is wrong with the tensor in `after`, beside that `maker` makes it so; empty if nothing.
///
/// Memory   a window of 4 MiB, or the largest piece that cannot be cut.
std::string difference(const OutputTensor& wanted, const families::Model& after, std::string_view maker);

}  // namespace coppice::upcycle::detail
