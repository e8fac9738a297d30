// One rank of the tests in tests/dist/test_processes.py and test_networks.py: does what it is told, prints how it ended.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <thread>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/dist/address_detail.h"
#include "coppice/dist/all_or_none.h"
#include "coppice/dist/world_detail.h"
#include "tests/guarded/guarded_device.h"
#include "tests/guarded/staged_backend.h"

namespace {

using namespace coppice;

std::string variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

at::Device model_device() { return at::Device(variable("DEVICE", "cpu")); }

/// `WHAT=RANK` in the environment: whether this rank is meant.
bool is_victim(const dist::World& world, const char* what) {
  return variable(what, "") == std::to_string(world.rank());
}

void say(const std::string& text) { std::cout << text + "\n" << std::flush; }

/// A clock that all processes of this machine share.
int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// Steps of a training run: a sum over all ranks, and a small one on the host.
void work(dist::World& world) {
  const int64_t steps = std::stoll(variable("STEPS", "50"));
  const int64_t fatal_step = std::stoll(variable("FATAL_STEP", "20"));
  const at::Tensor large = at::ones({1 << 18}, model_device()), small = at::ones({4});
  for (int64_t step = 0; step < steps; ++step) {
    if (step == fatal_step) {
      for (const char* what : {"KILL", "STOP", "HANG", "THROW", "SIGNAL", "RETURN", "REPORT"}) {
        if (is_victim(world, what)) say(cat("fatal at ", now_ms()));
      }
      if (is_victim(world, "KILL")) ::kill(::getpid(), SIGKILL);
      if (is_victim(world, "STOP")) ::kill(::getpid(), SIGSTOP);
      if (is_victim(world, "HANG")) std::this_thread::sleep_for(std::chrono::hours(1));
      if (is_victim(world, "THROW")) throw Error(ErrorCode::kIo, "no space left on 'shard 3'");
      if (is_victim(world, "SIGNAL")) ::kill(::getpid(), SIGTERM);
      if (is_victim(world, "RETURN")) return;
    }
    large.fill_(1);
    auto under_way = world.all().all_reduce(large);
    small.fill_(static_cast<double>(world.rank()));
    world.control().all_reduce(small).wait();
    under_way.wait();
    const auto n = static_cast<double>(world.size());
    if (large[5].item<double>() != n || small[0].item<double>() != n * (n - 1) / 2)
      throw Error(ErrorCode::kInternal, "a sum is wrong");
  }
}

int run() {
  catch_interrupts();
  guarded::install_fault_handler();
  guarded::install_staged_backend();
  at::set_num_threads(1);
  const launch::Launch launch = launch::read_launch(launch::process_environment());
  const auto milliseconds_of = [](const char* name, const char* otherwise) {
    return std::chrono::milliseconds(std::stoll(variable(name, otherwise)));
  };
  const dist::WorldSettings settings{.device = model_device(),
                                     .timeout = milliseconds_of("TIMEOUT_MS", "60000"),
                                     .silence = milliseconds_of("SILENCE_MS", "8000"),
                                     .patience = milliseconds_of("PATIENCE_MS", "60000")};
  const std::string mine = std::to_string(launch.rank) + ":";
  const auto own = [&](const char* name, const std::string& otherwise) {  // "RANK:VALUE" is for that rank alone
    const std::string text = variable(name, "");
    return text.starts_with(mine) ? text.substr(mine.size()) : otherwise;
  };
  try {
    dist::World world =
        dist::open_world(launch, settings, {own("PROGRAM", dist::program_identity()), own("SETTINGS", "abc")});
    say(cat("rank ", world.rank(), " of ", world.size(), " restart ", launch.restart, " local ", world.local_rank(),
            " host ", launch.host));
    if (launch.restart > 0) {
      for (const char* what : {"KILL", "THROW"}) ::unsetenv(what);
    }
    try {
      work(world);
    } catch (const std::exception& e) {
      world.leave(e.what());
      throw;
    }
    world.close();
    say(cat("rank ", launch.rank, " done"));
    return 0;
  } catch (const Error& e) {
    say(cat("rank ", launch.rank, " failed at ", now_ms(), ": ", e.what()));
    return exit_status(e.code);
  }
}

}  // namespace

int main() { return run(); }
