#pragma once

// What the program that started this process says about the others: torchrun, Slurm, Open MPI, MPICH and Intel MPI.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::launch {

/// A process's place in its run. Without a launcher it is rank 0 of 1.
struct Launch {
  std::string launcher;  ///< "torchrun", "Slurm", ...; empty without one
  int64_t rank = 0, size = 1, local_rank = 0;
  std::string host;  ///< of the rendezvous; empty where there is one rank
  uint16_t port = 0;
  int64_t restart = 0;       ///< how often torchrun has started the ranks again
  bool agent_store = false;  ///< torchrun serves the rendezvous, not rank 0
};

/// The value of an environment variable. An empty one counts as none.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;
/// That of this process.
Environment process_environment();

/// Reads the launcher's variables. If several launchers have set some (torchrun or mpirun within a job of Slurm), the
/// innermost counts. MASTER_ADDR and MASTER_PORT say where the ranks meet; Slurm has defaults for both, and an MPI for
/// ranks on one host.
///
/// Throws   Error{kUsage} naming the variables that are missing or contradict each other.
Launch read_launch(const Environment& environment);

/// The hosts of a Slurm node list such as "a[1-3,07],b".
///
/// Throws   Error{kUsage} if it is not one.
std::vector<std::string> expand_node_list(std::string_view list);

}  // namespace coppice::launch
