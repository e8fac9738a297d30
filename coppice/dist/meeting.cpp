#include <c10/util/Logging.h>
#include <unistd.h>

#include <cstdlib>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/dist/address_detail.h"
#include "coppice/dist/meeting_detail.h"
#include "coppice/dist/monitor_detail.h"
#include "coppice/dist/store_text_detail.h"

namespace coppice::dist {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kAttempt{2'000};
constexpr size_t kNamed = 8;  // ranks in a sentence
// More ranks than these do not all learn all names: rank 0, which judges, has them.
constexpr int64_t kMostNames = 1'024;
const std::string kCrew = "crew";

std::string hello_key(int64_t rank) { return cat("hello/", rank); }
std::string read_key(int64_t rank) { return cat("read/", rank); }

struct Hello {
  std::string host, process, size, address, program, settings;
};

std::string written(const Hello& hello) {
  return cat(hello.host, "\n", hello.process, "\n", hello.size, "\n", hello.address, "\n", hello.program, "\n",
             hello.settings);
}

Hello read(const std::string& text) {
  const auto f = split_in(text, 6);
  return {.host = f[0], .process = f[1], .size = f[2], .address = f[3], .program = f[4], .settings = f[5]};
}

std::string name_of(int64_t rank, const Hello& hello) {
  return cat("rank ", rank, " (host ", shown(hello.host), ", process ", shown(hello.process), ")");
}

// c10d logs warnings with stacks for what coppice says in a sentence.
void quieten_c10d() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") != nullptr) return;
  ::setenv("TORCH_CPP_LOG_LEVEL", "ERROR", 0);
  c10::initLogging();
}

std::string first_line(const std::exception& e) {
  const std::string text = e.what();
  return text.substr(0, text.find('\n'));
}

/// The texts of all `keys`; returns fewer if `patience` ends before, and those that are there.
std::vector<std::optional<std::string>> wait_for_texts(c10d::Store& store, const std::vector<std::string>& keys,
                                                       milliseconds patience) {
  const auto until = Clock::now() + patience;
  std::vector<std::optional<std::string>> texts(keys.size());
  size_t next = 0;  // keys before it are there
  while (next < keys.size() && Clock::now() < until) {
    check_interrupt();
    try {
      store.wait({keys[next]}, milliseconds(500));
      texts[next] = get_texts(store, {keys[next]}).front();
      ++next;
    } catch (const c10::Error&) {
      (void)store.check({keys[next]});  // throws if it was not the time that ran out
    }
  }
  for (; next < keys.size(); ++next) {
    if (store.check({keys[next]})) texts[next] = get_texts(store, {keys[next]}).front();
  }
  return texts;
}

/// One sentence of all the ranks whose `what` is not rank 0's; empty if there is none.
std::string differences(const std::vector<Hello>& all, const char* what, std::string Hello::* field) {
  std::vector<std::string> others;
  for (size_t r = 1; r < all.size(); ++r) {
    if (all[r].*field != all[0].*field) {
      others.push_back(cat(name_of(static_cast<int64_t>(r), all[r]), ": ", shown(all[r].*field)));
    }
  }
  if (others.empty()) return "";
  return cat("the ranks have different ", what, ": ", name_of(0, all[0]), ": ", shown(all[0].*field), "; ",
             join_some(others, kNamed, "; "), " (give every rank the same)");
}

/// Rank 0 reads what all say and writes "ok", an address outside of this host (if any) and the names; or the fault.
/// Returns the names.
std::vector<std::string> write_crew(c10d::Store& store, const Meeting& meeting, const launch::Launch& launch,
                                    milliseconds patience) {
  std::vector<std::string> keys;
  for (int64_t r = 0; r < launch.size; ++r) keys.push_back(hello_key(r));
  const auto texts = wait_for_texts(store, keys, patience);
  std::vector<Hello> all;
  std::vector<std::string> missing;
  for (size_t r = 0; r < texts.size(); ++r) {
    if (texts[r]) all.push_back(read(*texts[r]));
    if (!texts[r]) missing.push_back(std::to_string(r));
  }
  std::vector<std::string> faults;
  if (!missing.empty()) {
    faults.push_back(cat("rank ", join_some(missing, kNamed), " of ", launch.size,
                         " did not come to the rendezvous at ", meeting.place, " within ",
                         duration_text(static_cast<double>(patience.count()) / 1e3)));
  } else {
    for (const std::string& fault :
         {differences(all, "numbers of ranks", &Hello::size), differences(all, "programs", &Hello::program),
          differences(all, "settings", &Hello::settings)}) {
      if (!fault.empty()) faults.push_back(fault);
    }
  }
  if (!faults.empty()) {
    set_text(store, kCrew, cat(missing.empty() ? "differ" : "missing", "\n\n", join(faults, "; ")));
    return {};
  }
  std::string outside;
  std::vector<std::string> names;
  for (size_t r = 0; r < all.size(); ++r) {
    if (outside.empty() && !is_loopback(all[r].address)) outside = all[r].address;
    names.push_back(name_of(static_cast<int64_t>(r), all[r]));
  }
  Monitor::prepare(store, launch.size);
  const std::vector<std::string> told(names.begin(), names.begin() + std::min<int64_t>(launch.size, kMostNames));
  set_text(store, kCrew, cat("ok\n", outside, "\n", join(told, "\n")));
  return names;
}

/// What serves the store stays until the others have read that they may not begin.
void wait_for_readers(c10d::Store& store, int64_t size) {
  std::vector<std::string> keys;
  for (int64_t r = 1; r < size; ++r) keys.push_back(read_key(r));
  (void)wait_for_texts(store, keys, milliseconds(2'000));
}

}  // namespace

Meeting open_meeting(const launch::Launch& launch, milliseconds patience) {
  quieten_c10d();
  Meeting meeting{.place = cat(launch.host, ":", launch.port)};
  c10d::TCPStoreOptions options;
  options.port = launch.port;
  options.isServer = launch.rank == 0 && !launch.agent_store;
  options.waitWorkers = false;
  options.timeout = kAttempt;
  const auto until = Clock::now() + patience;
  while (true) {
    check_interrupt();
    try {
      auto store = c10::make_intrusive<c10d::TCPStore>(launch.host, options);
      store->setTimeout(patience);
      meeting.store = c10::make_intrusive<c10d::PrefixStore>(cat("coppice/", launch.restart), std::move(store));
      break;
    } catch (const std::exception& e) {
      if (options.isServer) {
        throw Error(ErrorCode::kIo, cat("rank 0 cannot serve the rendezvous at ", meeting.place, ": ", first_line(e),
                                        " (set MASTER_PORT to a port that is free)"));
      }
      if (Clock::now() < until) continue;
      throw Error(ErrorCode::kPeer, cat("nobody serves the rendezvous at ", meeting.place, ": ", first_line(e),
                                        "; rank 0 does, so see its log"));
    }
  }
  return meeting;
}

void meet(Meeting& meeting, const launch::Launch& launch, const Terms& terms, milliseconds patience) {
  meeting.address = address_towards(launch.host);
  c10d::Store& store = *meeting.store;
  std::optional<std::string> crew;
  try {
    set_text(store, hello_key(launch.rank),
             written({.host = host_name(),
                      .process = std::to_string(::getpid()),
                      .size = std::to_string(launch.size),
                      .address = meeting.address,
                      .program = terms.program,
                      .settings = terms.settings}));
    if (launch.rank == 0) meeting.names = write_crew(store, meeting, launch, patience);
    crew = wait_for_texts(store, {kCrew}, patience + kAttempt).front();
    set_text(store, read_key(launch.rank), "");
    if (launch.rank == 0 && meeting.names.empty()) wait_for_readers(store, launch.size);
  } catch (const c10::Error&) {
    throw Error(ErrorCode::kPeer, cat("the rendezvous at ", meeting.place, " is gone"));
  }
  if (!crew) throw Error(ErrorCode::kPeer, cat("rank 0 did not come to the rendezvous at ", meeting.place));
  const auto fields = split_in(*crew, 3);
  if (fields[0] != "ok") throw Error(fields[0] == "differ" ? ErrorCode::kUsage : ErrorCode::kPeer, fields[2]);
  if (is_loopback(meeting.address) && !fields[1].empty()) meeting.address = address_towards(fields[1]);
  if (launch.rank != 0) meeting.names = split(fields[2], '\n');
  for (int64_t r = std::ssize(meeting.names); r < launch.size; ++r) meeting.names.push_back(cat("rank ", r));
}

}  // namespace coppice::dist
