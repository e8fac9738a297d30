#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "coppice/dist/world.h"

namespace coppice::cli {

/// What a command wants of the ranks that a launcher started.
struct RankSettings {
  std::string device;  ///< the option's value
  int64_t expert_parallel = 1;
  double timeout_s = 600;
  std::string settings;  ///< what has to be the same on all ranks
  bool signals_end_waits = true;
};

/// The ranks of a command, and what this one is to use.
struct Ranks {
  std::shared_ptr<dist::World> world;  ///< null: this process is alone
  std::string device;                  ///< where a GPU was asked for, the one of this rank
  uint64_t threads = 0;                ///< this rank's share of the processors; 0: all

  bool is_first() const { return !world || world->rank() == 0; }
};

/// Runs `act` on every rank that torchrun, Slurm or an MPI has started; without a launcher, in this process alone. Ranks
/// but the first show no progress and no notes, and begin their warnings with their number.
///
/// Ranks    collective. If one throws, the others end with Error{kPeer}, which names it and says why.
void on_ranks(const RankSettings& settings, const std::function<void(const Ranks&)>& act);

}  // namespace coppice::cli
