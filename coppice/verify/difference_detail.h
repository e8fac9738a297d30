#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "coppice/families/match.h"
#include "coppice/output/tensors.h"

namespace coppice::verify::detail {

/// The problem with the tensor found; empty if it is equal. `other_bytes` is the text to use if its bytes differ.
///
/// Memory   a window of 4 MiB, or the largest piece that cannot be divided.
std::string difference(const output::OutputTensor& wanted, const std::optional<io::Checkpoint::Entry>& found,
                       std::string_view other_bytes);
/// The same for the tensor with that name in `after`.
std::string difference(const output::OutputTensor& wanted, const families::Model& after, std::string_view other_bytes);

}  // namespace coppice::verify::detail
