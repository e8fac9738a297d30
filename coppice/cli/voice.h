#pragma once

// How one of several processes of a launcher speaks: each line that a user sees says whose it is.

#include <cstdint>
#include <optional>
#include <string>

#include "coppice/output/part_option.h"

namespace coppice::cli {

/// From now on a rank but the first shows no progress and no notes, and begins its warnings with its number.
void speak_as(int64_t rank);

/// The same for the process that does `part` of a command's work, if a launcher has started it as one of several: the
/// text of its error begins with rank and part.
void speak_as(const std::optional<output::PartOption>& part);

/// What comes before the text of an error: "rank 1, part 2/4: ", or nothing.
const std::string& speaker();

}  // namespace coppice::cli
