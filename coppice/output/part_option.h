#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "coppice/io/partial_directory.h"

namespace coppice::output {

/// The value of --part: "2/4"; or "auto", which is one part for each process that torchrun, Slurm or an MPI has started.
struct PartOption {
  io::Part part;
  bool is_auto = false;

  /// Throws   Error{kUsage}, also if the launcher's variables do not fit each other.
  static PartOption from_text(std::string_view text);
  std::string to_text() const { return is_auto ? "auto" : part.to_text(); }
};

/// Whether other processes write the same output.
inline bool is_shared(const std::optional<PartOption>& part) { return part && part->part.count > 1; }

}  // namespace coppice::output
