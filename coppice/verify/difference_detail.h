#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "coppice/families/match.h"
#include "coppice/output/tensors.h"

namespace coppice::verify::detail {

/// What is wrong with the tensor found; empty if nothing. `other_bytes` is what to say where its bytes are others.
///
/// Memory   a window of 4 MiB, or the largest piece that cannot be cut.
std::string difference(const output::OutputTensor& wanted, const std::optional<io::Checkpoint::Entry>& found,
                       std::string_view other_bytes);
/// The same of the tensor of that name in `after`.
std::string difference(const output::OutputTensor& wanted, const families::Model& after, std::string_view other_bytes);

}  // namespace coppice::verify::detail
