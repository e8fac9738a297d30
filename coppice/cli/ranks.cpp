#include "coppice/cli/ranks.h"

#include <ATen/ops/empty.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/cli/voice.h"
#include "coppice/launch/launch.h"
#include "coppice/nn/device.h"
#include "coppice/nn/host.h"

namespace coppice::cli {
namespace {

// The GPU of this rank, where the option leaves it open.
std::string device_of(const std::string& option, std::string_view name, int64_t local_rank) {
  const at::Device device = nn::compute_device(option, name);
  if (device.is_cpu()) return option;
  const bool is_open = option == "auto" || option.find(':') == std::string::npos;
  return is_open ? cat(c10::DeviceTypeName(device.type(), true), ":", local_rank) : option;
}

void check_expert_groups(const RankSettings& settings, int64_t ranks) {
  const int64_t group = settings.expert_parallel;
  if (group >= 1 && ranks % group == 0) return;
  const std::string_view remedy = ranks == 1 ? " (start it with torchrun, srun or mpirun)" : "";
  throw Error(ErrorCode::kUsage, cat(settings.expert_option, ": groups of ", group, " ranks in a run of ", ranks,
                                     "; wanted a number that divides ", ranks, remedy));
}

// How many ranks are on this host.
int64_t ranks_here(dist::World& world) {
  std::array<char, 256> name{};
  (void)::gethostname(name.data(), name.size() - 1);
  const auto mine = static_cast<int64_t>(std::hash<std::string_view>{}(name.data()));
  const at::Tensor all = at::empty({world.size()}, at::kLong);
  world.control().all_gather(all, nn::from_host<int64_t>(std::array{mine}, {1}, at::kCPU)).wait();
  return std::ranges::count(nn::host_values<int64_t>(all), mine);
}

}  // namespace

void on_ranks(const RankSettings& settings, const std::function<void(const Ranks&)>& act) {
  const launch::Launch launch = launch::read_launch(launch::process_environment());
  check_expert_groups(settings, launch.size);
  if (launch.size == 1) {
    act({.world = nullptr, .device = settings.device});
    return;
  }
  speak_as(launch.rank);
  const std::string device = device_of(settings.device, settings.device_option, launch.local_rank);
  const dist::WorldSettings world{
      .device = nn::compute_device(device, settings.device_option),
      .expert_parallel = settings.expert_parallel,
      .timeout = std::chrono::milliseconds(static_cast<int64_t>(settings.timeout_s * 1000)),
      .settings = settings.settings,
      .signals_end_waits = settings.signals_end_waits,
  };
  dist::with_world(world, [&](dist::World& opened) {
    const auto threads = static_cast<uint64_t>(default_threads()), here = static_cast<uint64_t>(ranks_here(opened));
    act({.world = std::shared_ptr<dist::World>(&opened, [](dist::World*) {}),
         .device = device,
         .threads = std::max<uint64_t>(1, threads / here)});
  });
}

}  // namespace coppice::cli
