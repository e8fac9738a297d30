#include "coppice/cli/ranks.h"

#include <ATen/ops/empty.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/dist/launch.h"
#include "coppice/nn/device.h"
#include "coppice/nn/host.h"

namespace coppice::cli {
namespace {

// The GPU of this rank, where the option leaves it open.
std::string device_of(const std::string& option, int64_t local_rank) {
  const at::Device device = nn::compute_device(option, "device");
  if (device.is_cpu()) return option;
  const bool is_open = option == "auto" || option.find(':') == std::string::npos;
  return is_open ? cat(c10::DeviceTypeName(device.type(), true), ":", local_rank) : option;
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

void speak_as(int64_t rank) {
  if (rank == 0) return;
  enable_progress(false);
  set_log_sink([rank, sink = stderr_sink(true)](LogLevel level, std::string_view message) {
    if (level == LogLevel::kWarning) sink(level, cat("rank ", rank, ": ", message));
  });
}

}  // namespace

void on_ranks(const RankSettings& settings, const std::function<void(const Ranks&)>& act) {
  const dist::Launch launch = dist::read_launch(dist::process_environment());
  if (launch.size == 1) {
    if (settings.expert_parallel > 1) {
      throw Error(ErrorCode::kUsage, cat("parallel.expert: ", settings.expert_parallel,
                                         " ranks for a run of one (start it with torchrun, srun or mpirun)"));
    }
    act({.world = nullptr, .device = settings.device});
    return;
  }
  speak_as(launch.rank);
  const std::string device = device_of(settings.device, launch.local_rank);
  const dist::WorldSettings world{
      .device = nn::compute_device(device, "device"),
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
