#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/dist/world.h"

namespace coppice::cli {

/// What a command wants of the ranks that a launcher started.
struct RankSettings {
  std::string device;  ///< the option's value
  int64_t expert_parallel = 1;
  /// What the user calls these two.
  std::string_view device_option = "device", expert_option = "--expert-parallel";
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
/// Throws   Error{kUsage} naming the option, on every rank, if expert groups do not fit the number of ranks.
void on_ranks(const RankSettings& settings, const std::function<void(const Ranks&)>& act);

/// The same for a command with options `device` and `threads` and these arguments, which all ranks have to have: `act`
/// gets the options with this rank's device and number of threads.
template <class Options, class Act>
void on_ranks(const Options& options, int64_t expert_parallel, std::span<const std::string_view> args, const Act& act) {
  on_ranks({.device = options.device,
            .expert_parallel = expert_parallel,
            .settings = join(std::vector<std::string>(args.begin(), args.end()), " ")},
           [&](const Ranks& ranks) {
             Options own = options;
             own.device = ranks.device;
             if (!own.threads && ranks.threads > 0) own.threads = ranks.threads;
             act(own, ranks);
           });
}

}  // namespace coppice::cli
