#include "coppice/io/partial_directory.h"

#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <map>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/io/journal_detail.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/work_directory_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

using detail::Journal;
using detail::WorkDirectory;

/// Waits for a lock; a signal to any thread ends the wait.
void wait_for_lock(const Descriptor& file) {
  constexpr auto kPause = std::chrono::milliseconds(20);
  while (detail::lock(file, LOCK_EX | LOCK_NB) == detail::Lock::kHeldByAnother) {
    check_interrupt();
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace

Part Part::from_text(std::string_view text) {
  Part part;
  const auto* const end = text.data() + text.size();
  const auto [slash, error] = std::from_chars(text.data(), end, part.index);
  bool good = error == std::errc() && slash != end && *slash == '/';
  if (good) {
    const auto [stop, second] = std::from_chars(slash + 1, end, part.count);
    good = second == std::errc() && stop == end && part.index >= 1 && part.index <= part.count && part.count <= kMost;
  }
  if (!good) throw Error(ErrorCode::kUsage, cat("'", text, "' is not a part; wanted one such as 1/4, 2/4, 3/4 or 4/4"));
  return part;
}

std::string Part::to_text() const { return cat(index, "/", count); }

struct PartialDirectory::State {
  WorkDirectory work;
  Part part;
  bool named = false;
  WorkIdentity identity;
  Descriptor alone_file;
  Journal journal;

  // A process that does all the work needs the directory alone; parts share it.
  State(OutputPlace target, Part wanted, WorkIdentity what)
      : work(std::move(target), wanted.count == 1 ? LOCK_EX : LOCK_SH), part(wanted), identity(std::move(what)) {}

  const fs::path& given() const { return work.target().given(); }
  void check_journals() const;
  std::vector<uint32_t> missing_parts() const;
  void sync_names() const;
};

namespace {

std::map<std::string, std::string> named_lines(std::string_view lines) {
  std::map<std::string, std::string> named;
  for (const std::string& line : split(lines, '\n')) {
    if (const size_t space = line.find(' '); space != std::string::npos)
      named[line.substr(0, space)] = line.substr(space + 1);
  }
  return named;
}

// " (--seed differs)": options by name; other things only if no option differs.
std::string differing(std::string_view begun, std::string_view wanted) {
  const auto was = named_lines(begun), is = named_lines(wanted);
  std::set<std::string> options, others;
  for (const auto* lines : {&was, &is}) {
    for (const auto& [name, unused] : *lines) {
      const auto a = was.find(name), b = is.find(name);
      if (a != was.end() && b != is.end() && a->second == b->second) continue;
      (name.starts_with("--") ? options : others).insert(name);
    }
  }
  const std::set<std::string>& names = options.empty() ? others : options;
  if (names.empty()) return {};
  return cat(" (", join(std::vector(names.begin(), names.end())), names.size() == 1 ? " differs)" : " differ)");
}

}  // namespace

// All parts must belong to the same work.
void PartialDirectory::State::check_journals() const {
  for (const auto& file : fs::directory_iterator(work.journals())) {
    const auto seen = Journal::look(file.path());
    if (!seen) continue;
    if (seen->part.count != part.count) {
      throw Error(ErrorCode::kUsage,
                  cat(given(), ": was begun in ", seen->part.count, seen->part.count == 1 ? " part" : " parts",
                      "; wanted ", part.count, " (use the earlier number of parts, or remove ", work.path(), ")"));
    }
    if (seen->identity.plan != identity.plan) {
      throw Error(ErrorCode::kUsage, cat(given(), ": was begun with another model, other settings or another version",
                                         differing(seen->identity.plan, identity.plan), ", in ", work.path(),
                                         "; wanted the same ones (use them, or remove that directory)"));
    }
    if (seen->part == part && seen->identity.source != identity.source) {
      throw Error(ErrorCode::kFormat, cat(given(), ": the source has changed since this was begun in ", work.path(),
                                          ", so copied parts may not fit together (remove that directory)"));
    }
  }
}

std::vector<uint32_t> PartialDirectory::State::missing_parts() const {
  std::vector<uint32_t> missing;
  for (uint32_t i = 1; i <= part.count; ++i) {
    const auto seen = Journal::look(work.journals() / Journal::name({i, part.count}));
    if (!seen || !seen->complete) missing.push_back(i);
  }
  return missing;
}

// Recorded units are in files whose directory entries are on the disk, too.
void PartialDirectory::State::sync_names() const {
  for (const auto& entry : fs::recursive_directory_iterator(work.model())) {
    if (entry.is_directory()) detail::sync_directory(entry.path());
  }
  for (const auto& path : {work.model(), work.path()}) detail::sync_directory(path);
  detail::sync(work.target().parent(), work.target().parent_path());
}

PartialDirectory::PartialDirectory(OutputPlace target, Part part, bool resume, WorkIdentity identity)
    : state_(std::make_unique<State>(std::move(target), part, std::move(identity))) {
  auto& s = *state_;
  const bool continues = resume || part.count > 1;
  s.work.keep(continues);
  try {
    s.alone_file = Descriptor(::openat(s.work.descriptor().get(), WorkDirectory::kAlone,
                                       O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0666));
    if (!s.alone_file) throw_io((s.work.path() / WorkDirectory::kAlone).string(), "open it", errno);
    alone([&] {
      if (s.work.target().is_taken()) {  // another part has finished since this one began
        s.work.keep(s.work.has(WorkDirectory::kModel));
        s.work.target().check_free();
      }
      // Without `model`, a process ended between the rename of the output and the cleanup.
      if (!continues || !s.work.has(WorkDirectory::kModel)) s.work.clear();
      s.work.make_directory(WorkDirectory::kModel);
      s.work.make_directory(WorkDirectory::kJournals);
      s.check_journals();
      s.journal = Journal(s.work.journals() / Journal::name(part), part, s.identity);
    });
  } catch (const fs::filesystem_error& e) {
    throw_io(s.work.path().string(), "list it", e.code().value());
  }
}

PartialDirectory::~PartialDirectory() = default;

std::filesystem::path PartialDirectory::path() const { return state_->work.model(); }
const std::vector<uint64_t>& PartialDirectory::done() const { return state_->journal.done(); }

void PartialDirectory::record(std::span<const uint64_t> units) {
  if (units.empty()) return;
  if (!std::exchange(state_->named, true)) state_->sync_names();
  state_->journal.record(units);
}

void PartialDirectory::alone(const std::function<void()>& act) {
  struct Release {
    const Descriptor& file;
    ~Release() { ::flock(file.get(), LOCK_UN); }
  };
  wait_for_lock(state_->alone_file);
  const Release release{state_->alone_file};
  act();
}

void PartialDirectory::discard() { state_->work.keep(false); }

std::vector<uint32_t> PartialDirectory::seal(const std::function<void()>& finish) {
  auto& s = *state_;
  s.journal.complete();
  std::vector<uint32_t> missing;
  alone([&] {
    if (!s.work.is_held()) {
      s.work.keep(true);                       // the name does not belong to this process any more
      if (s.work.target().is_taken()) return;  // another part finished while this one waited
      throw Error(ErrorCode::kIo,
                  cat(s.given(), ": ", s.work.path(),
                      " was moved or replaced while it was written (start again, and do not change it)"));
    }
    missing = s.missing_parts();
    if (!missing.empty()) return;
    finish();
    s.work.move_into_place();
  });
  return missing;
}

}  // namespace coppice::io
