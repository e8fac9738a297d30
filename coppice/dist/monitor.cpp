#include <charconv>
#include <deque>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/dist/monitor_detail.h"
#include "coppice/dist/store_text_detail.h"

namespace coppice::dist {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kBeat{200};
constexpr int64_t kRanksOfOneBeat = 256;
constexpr size_t kNamed = 8;  // ranks in a sentence
// What rank 0 writes about the run, once: that all have come to its end, or who is lost. (No objects with destructors:
// the thread may outlive them.)
constexpr const char* kOutcome = "outcome";
constexpr std::string_view kAllDone = "done\n", kLost = "lost\n";

std::string key_of(int64_t rank) { return cat("rank/", rank); }

milliseconds since(Clock::time_point then) { return std::chrono::duration_cast<milliseconds>(Clock::now() - then); }

std::string written(const RankReport& report, uint64_t beat) {
  return cat(static_cast<char>(report.state), "\n", beat, "\n", report.waits.count(), "\n", report.sentence);
}

/// The reports of ranks as this one has read them. Silence counts in beats of our own: a host that slept has not
/// listened.
class Listener {
 public:
  explicit Listener(size_t ranks) : texts_(ranks), reports_(ranks) {}

  void hear(size_t rank, std::string text, milliseconds passed) {
    RankReport& report = reports_[rank];
    if (text == texts_[rank]) {
      report.silent += passed;
      return;
    }
    const auto fields = split_in(text, 4);
    int64_t waits = 0;
    std::from_chars(fields[2].data(), fields[2].data() + fields[2].size(), waits);
    report = {.state = static_cast<RankState>(fields[0].at(0)), .waits = milliseconds(waits), .sentence = fields[3]};
    texts_[rank] = std::move(text);
  }

  const std::vector<RankReport>& reports() const { return reports_; }

 private:
  std::vector<std::string> texts_;
  std::vector<RankReport> reports_;
};

}  // namespace

struct Monitor::Shared {
  Shared(c10::intrusive_ptr<c10d::Store> its_store, MonitorSettings its_settings)
      : store(std::move(its_store)),
        settings(std::move(its_settings)),
        beat_time(kBeat * (1 + (size() - 1) / kRanksOfOneBeat)),
        listener(settings.rank == 0 ? settings.names.size() : 1) {}

  void run();
  void beat(milliseconds passed);
  std::string outcome() const;
  void learn(const std::string& known);
  int64_t size() const { return std::ssize(settings.names); }
  /// Says it and waits, for `most` at most, until it is known how the run ends. Returns whether it is.
  bool publish(RankReport report, milliseconds most);

  const c10::intrusive_ptr<c10d::Store> store;
  const MonitorSettings settings;
  const milliseconds beat_time;

  std::mutex mutex;
  std::condition_variable changed;
  RankReport own;   ///< but for `waits`
  int waiting = 0;  ///< collectives that are waited for
  Clock::time_point waits_since;
  struct Launched {
    Clock::time_point begun;
    std::function<bool()> completed;
  };
  std::deque<Launched> launched;  ///< collectives that the host does not wait for, in their order
  uint64_t beats = 0;             ///< that the store has answered
  bool wake = false, stop = false, ended = false;
  std::string lost;                     ///< the sentence, once a rank is lost
  bool all_done = false;                ///< the run has come to its end on all ranks
  std::atomic<bool> own_broke = false;  ///< a collective of this rank broke
  bool others_know = false;             ///< rank 0: nobody else needs the store
  std::vector<std::function<void()>> when_lost;
  // Of check(): how long the store has not answered.
  uint64_t beats_seen = 0;
  Clock::time_point checked{};
  milliseconds unanswered{0};

  Listener listener;  ///< of the thread alone: all ranks at rank 0, elsewhere rank 0
};

void Monitor::Shared::run() {
  auto before = Clock::now();
  std::unique_lock lock(mutex);
  while (!stop) {
    lock.unlock();
    try {
      // No more than three beats pass between two: if it was longer, this process slept.
      beat(std::min(since(before), 3 * beat_time));
      before = Clock::now();
    } catch (const std::exception&) {
      const std::string rendezvous = cat("the rendezvous at ", settings.meeting);
      learn(cat(kLost, settings.rank_0_serves ? cat(settings.names[0], " is gone (killed?), and with it ", rendezvous)
                                              : cat(rendezvous, " is gone")));
      lock.lock();
      break;
    }
    lock.lock();
    changed.wait_for(lock, beat_time, [&] { return wake || stop; });
    wake = false;
  }
  ended = true;
  changed.notify_all();
}

void Monitor::Shared::beat(milliseconds passed) {
  RankReport report;
  uint64_t number = 0;
  {
    const std::lock_guard lock(mutex);
    report = own;
    while (!launched.empty() && launched.front().completed()) launched.pop_front();
    if (waiting > 0) report.waits = std::max(since(waits_since), milliseconds(1));
    if (!launched.empty()) report.waits = std::max(report.waits, since(launched.front().begun));
    number = beats + 1;
  }
  set_text(*store, key_of(settings.rank), written(report, number));
  std::vector<std::string> keys{kOutcome};
  for (size_t r = 0; r < listener.reports().size(); ++r) keys.push_back(key_of(static_cast<int64_t>(r)));
  const auto values = get_texts(*store, keys);
  for (size_t r = 0; r + 1 < values.size(); ++r) listener.hear(r, values[r + 1], passed);
  std::string known = values[0];
  if (known.empty()) known = outcome();
  if (values[0].empty() && !known.empty()) known = replace_text(*store, kOutcome, "", known);
  if (!known.empty()) learn(known);
  const std::lock_guard lock(mutex);
  ++beats;
  others_know = std::ranges::all_of(listener.reports().begin() + 1, listener.reports().end(), [&](const RankReport& r) {
    return r.state == RankState::kKnows || r.silent >= settings.limits.gone;
  });
  changed.notify_all();
}

// Rank 0 judges all ranks; the others only rank 0, by its silence.
std::string Monitor::Shared::outcome() const {
  std::vector<RankReport> reports = listener.reports();
  if (settings.rank == 0) {
    if (std::ranges::all_of(reports, [](const RankReport& r) { return r.state == RankState::kDone; }))
      return std::string(kAllDone);
  } else {
    reports[0] = {.silent = reports[0].silent};
    if (own_broke) reports.push_back({.state = RankState::kBroke});
  }
  const auto verdict = judge(reports, settings.limits);
  if (!verdict) return "";
  std::vector<std::string> names;
  for (const size_t rank : verdict->ranks) names.push_back(settings.names[rank]);
  return cat(kLost, join_some(names, kNamed), " ", verdict->why);
}

void Monitor::Shared::learn(const std::string& known) {
  std::vector<std::function<void()>> stops;
  {
    const std::lock_guard lock(mutex);
    if (all_done || !lost.empty()) return;
    if (known == kAllDone) {
      all_done = true;
    } else {
      lost = known.substr(kLost.size());
      stops = when_lost;
    }
    own.state = RankState::kKnows;
    wake = true;  // the others need not wait for this rank
  }
  changed.notify_all();
  for (const auto& stop_it : stops) stop_it();
}

bool Monitor::Shared::publish(RankReport report, milliseconds most) {
  std::unique_lock lock(mutex);
  const auto known = [&] { return all_done || !lost.empty() || ended; };
  if (!known()) {
    own = std::move(report);
    wake = true;
    changed.notify_all();
    if (!changed.wait_for(lock, most, known)) return false;
  }
  // Once more, so that the others read that this rank knows it.
  const uint64_t next = beats + 2;
  changed.wait_for(lock, std::min(most, milliseconds(500)), [&] { return ended || beats >= next; });
  return true;
}

Monitor::Monitor(c10::intrusive_ptr<c10d::Store> store, MonitorSettings settings)
    : shared_(std::make_shared<Shared>(std::move(store), std::move(settings))) {
  std::thread([shared = shared_] { shared->run(); }).detach();
}

Monitor::~Monitor() {
  std::unique_lock lock(shared_->mutex);
  shared_->stop = true;
  shared_->when_lost.clear();
  shared_->launched.clear();
  shared_->changed.notify_all();
  shared_->changed.wait_for(lock, std::chrono::seconds(1), [&] { return shared_->ended; });
}

void Monitor::prepare(c10d::Store& store, int64_t size) {
  for (int64_t r = 0; r < size; ++r) set_text(store, key_of(r), written({}, 0));
  set_text(store, kOutcome, "");
}

void Monitor::check() {
  if (shared_->settings.signals_end_waits) check_interrupt();
  const std::lock_guard lock(shared_->mutex);
  Shared& s = *shared_;
  if (!s.lost.empty()) throw Error(ErrorCode::kPeer, s.lost);
  const auto now = Clock::now();
  if (s.beats != s.beats_seen || s.waiting == 0) {
    s.unanswered = milliseconds(0);
  } else {
    s.unanswered += std::min(std::chrono::duration_cast<milliseconds>(now - s.checked), 3 * s.beat_time);
  }
  s.beats_seen = s.beats;
  s.checked = now;
  if (s.unanswered < s.settings.limits.silence) return;
  throw Error(ErrorCode::kPeer,
              cat("the rendezvous at ", s.settings.meeting, " does not answer since ", s.unanswered.count() / 1000,
                  " s", s.settings.rank_0_serves ? cat("; ", s.settings.names[0], " serves it") : "",
                  " (its process is stopped, or its host or the network is down)"));
}

void Monitor::broke(const std::string& reason) {
  // The others say soon who is lost; the judge itself names a connection that only broke.
  const auto until = Clock::now() + std::chrono::seconds(9);
  waits(true);
  {
    const std::lock_guard lock(shared_->mutex);
    if (shared_->lost.empty()) shared_->own = {.state = RankState::kBroke, .sentence = reason};
    shared_->own_broke = true;
    shared_->waits_since = Clock::now();
    shared_->wake = true;
    shared_->changed.notify_all();
  }
  while (Clock::now() < until) {
    check();
    std::unique_lock lock(shared_->mutex);
    shared_->changed.wait_for(lock, milliseconds(100), [&] { return !shared_->lost.empty(); });
  }
  throw Error(ErrorCode::kPeer, cat("a connection to another rank broke: ", reason));
}

void Monitor::waits(bool waiting) {
  const std::lock_guard lock(shared_->mutex);
  if (waiting && shared_->waiting == 0) shared_->waits_since = Clock::now();
  shared_->waiting += waiting ? 1 : -1;
}

void Monitor::launched(std::function<bool()> completed) {
  const std::lock_guard lock(shared_->mutex);
  shared_->launched.push_back({Clock::now(), std::move(completed)});
}

std::string Monitor::name_of(int64_t rank) const { return shared_->settings.names.at(static_cast<size_t>(rank)); }

void Monitor::when_lost(std::function<void()> stop) {
  const std::lock_guard lock(shared_->mutex);
  shared_->when_lost.push_back(std::move(stop));
}

void Monitor::leave(const std::string& why) {
  shared_->publish({.state = RankState::kLeft, .sentence = why}, std::chrono::seconds(2));
}

void Monitor::finish() {
  while (!shared_->publish({.state = RankState::kDone}, milliseconds(200))) check();
  check();
}

void Monitor::wait_for_others(milliseconds most) {
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait_for(lock, most, [&] { return shared_->others_know || shared_->ended; });
}

}  // namespace coppice::dist
