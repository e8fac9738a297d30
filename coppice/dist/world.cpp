#include "coppice/dist/world.h"

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/dist/address_detail.h"
#include "coppice/dist/backends_detail.h"
#include "coppice/dist/monitor_detail.h"
#include "coppice/dist/world_detail.h"

namespace coppice::dist {

struct World::State {
  Seat seat;
  std::shared_ptr<Group> control, all, experts, same_experts;
  bool ended = false;
};

namespace {

// The others read within a beat or two why a rank left; in an orderly end they are about to end too.
constexpr std::chrono::seconds kLeaving{2}, kClosing{10};

/// Of a rank without others.
class Alone final : public Watch {
 public:
  void check() override {}
  [[noreturn]] void broke(const std::string& reason) override { throw Error(ErrorCode::kInternal, reason); }
  void waits(bool) override {}
  void launched(std::function<bool()>) override {}
  void when_lost(std::function<void()>) override {}
  std::string name_of(int64_t rank) const override { return cat("rank ", rank); }
};

void leave_monitor(const Seat& seat, const std::string& why) {
  seat.monitor->leave(why);
  if (seat.serves) seat.monitor->wait_for_others(kLeaving);
}

}  // namespace

World::World(std::unique_ptr<State> state) : state_(std::move(state)) {}
World::World(World&&) noexcept = default;
World::~World() {
  if (state_ && !state_->ended) leave("no reason given");
}

void World::close() {
  state_->ended = true;
  if (!state_->seat.monitor) return;
  try {
    state_->seat.monitor->finish();
  } catch (const std::exception& e) {
    leave_monitor(state_->seat, e.what());
    throw;
  }
  if (state_->seat.serves) state_->seat.monitor->wait_for_others(kClosing);
}

void World::leave(const std::string& why) noexcept {
  if (std::exchange(state_->ended, true) || !state_->seat.monitor) return;
  try {
    leave_monitor(state_->seat, why);
  } catch (const std::exception&) {
  }
}

void World::check() { state_->seat.watch->check(); }

int64_t World::rank() const { return state_->seat.rank; }
int64_t World::size() const { return state_->seat.size; }
int64_t World::local_rank() const { return state_->seat.local_rank; }
std::string World::name_of(int64_t rank) const { return state_->seat.watch->name_of(rank); }

Group& World::control() { return *state_->control; }
Group& World::all() { return *state_->all; }
Group& World::experts() { return *state_->experts; }
Group& World::same_experts() { return *state_->same_experts; }

namespace {

/// The ranks `first`, `first + step`, ...: `count` of them.
std::vector<int64_t> every(int64_t first, int64_t step, int64_t count) {
  std::vector<int64_t> ranks;
  for (int64_t i = 0; i < count; ++i) ranks.push_back(first + i * step);
  return ranks;
}

class Groups {
 public:
  Groups(const Seat& seat, std::chrono::milliseconds timeout) : seat_(seat), timeout_(timeout) {}

  std::shared_ptr<Group> make(const std::string& name, at::Device device, std::vector<int64_t> ranks) const {
    if (ranks.size() == 1) return single(device, seat_.watch->name_of(seat_.rank));
    const DeviceBackend& kind = backend_for(device);
    // The watch names a rank that hangs; the backend, which cannot, gives up later.
    const BackendPlace place{.store = seat_.store,
                             .name = name,
                             .rank = std::ranges::find(ranks, seat_.rank) - ranks.begin(),
                             .size = std::ssize(ranks),
                             .address = seat_.address,
                             .timeout = timeout_ + std::chrono::minutes(1)};
    c10::intrusive_ptr<c10d::Backend> backend;
    try {
      backend = kind.make(place);
    } catch (const std::exception& e) {
      seat_.watch->broke(cat("the group '", name, "' cannot be made: ", e.what()));
    }
    return make_group(std::move(backend), device, kind.waiting, std::move(ranks), seat_.watch);
  }

 private:
  const Seat& seat_;
  const std::chrono::milliseconds timeout_;
};

}  // namespace

World join(const Seat& seat, const WorldSettings& settings) {
  const int64_t expert_ranks = settings.expert_parallel;
  if (expert_ranks < 1 || seat.size % expert_ranks != 0) {
    throw Error(ErrorCode::kUsage, cat("the experts cannot be spread over groups of ", expert_ranks, " of ", seat.size,
                                       " ranks; take a number that divides ", seat.size));
  }
  auto state = std::make_unique<World::State>();
  state->seat = seat;
  const Groups groups(seat, settings.timeout);
  const auto all = every(0, 1, seat.size);
  state->control = groups.make("control", at::kCPU, all);
  state->all = groups.make("all", settings.device, all);
  const int64_t first = seat.rank - seat.rank % expert_ranks, offset = seat.rank % expert_ranks;
  // Never one with `all`: rows go to experts while gradients are summed, and not in the same order on every rank.
  state->experts = groups.make(cat("experts/", first), settings.device, every(first, 1, expert_ranks));
  state->same_experts = expert_ranks == 1 ? state->all
                                          : groups.make(cat("same_experts/", offset), settings.device,
                                                        every(offset, expert_ranks, seat.size / expert_ranks));
  return World(std::move(state));
}

World open_world(const launch::Launch& launch, const WorldSettings& settings, const Terms& terms) {
  Seat seat{
      .rank = launch.rank, .size = launch.size, .local_rank = launch.local_rank, .watch = std::make_shared<Alone>()};
  if (launch.size == 1) return join(seat, settings);
  Meeting meeting = open_meeting(launch, settings.patience);
  meet(meeting, launch, terms, settings.patience);
  seat.store = meeting.store;
  seat.address = meeting.address;
  seat.serves = launch.rank == 0 && !launch.agent_store;
  seat.monitor = std::make_shared<Monitor>(
      meeting.store->clone(), MonitorSettings{.rank = launch.rank,
                                              .meeting = meeting.place,
                                              .rank_0_serves = !launch.agent_store,
                                              .names = meeting.names,
                                              .limits = {.silence = settings.silence, .timeout = settings.timeout},
                                              .signals_end_waits = settings.signals_end_waits});
  seat.watch = seat.monitor;
  try {
    return join(seat, settings);
  } catch (const std::exception& e) {
    leave_monitor(seat, e.what());
    throw;
  }
}

World World::open(const WorldSettings& settings) {
  return open_world(launch::read_launch(launch::process_environment()), settings,
                    {program_identity(), settings.settings});
}

void with_world(const WorldSettings& settings, const std::function<void(World&)>& body) {
  World world = World::open(settings);
  try {
    body(world);
  } catch (const std::exception& e) {
    world.leave(e.what());
    throw;
  }
  world.close();
}

}  // namespace coppice::dist
