#include "coppice/io/partial_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

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
#include "coppice/io/atomic_file.h"
#include "coppice/io/journal_detail.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

using detail::Descriptor;
using detail::Journal;
using detail::throw_io;

constexpr const char* kLock = "lock";
constexpr const char* kAlone = "alone";
constexpr const char* kModel = "model";
constexpr const char* kJournals = "journals";
/// The contents of the lock file in coppice's own directories.
constexpr std::string_view kMark = "a directory of unfinished work of coppice\n";

enum class Lock { kTaken, kHeldByAnother };

// On file systems without locks (some network ones) everybody gets the lock.
Lock lock(const Descriptor& file, int how) {
  while (::flock(file.get(), how) != 0) {
    if (errno == EWOULDBLOCK) return Lock::kHeldByAnother;
    if (errno != EINTR) break;
    check_interrupt();
  }
  return Lock::kTaken;
}

/// Waits for a lock; a signal to any thread ends the wait.
void wait_for_lock(const Descriptor& file) {
  constexpr auto kPause = std::chrono::milliseconds(20);
  while (lock(file, LOCK_EX | LOCK_NB) == Lock::kHeldByAnother) {
    check_interrupt();
    std::this_thread::sleep_for(kPause);
  }
}

bool is_same(const struct stat& a, const struct stat& b) { return a.st_ino == b.st_ino && a.st_dev == b.st_dev; }

}  // namespace

Part Part::from_text(std::string_view text) {
  Part part;
  const auto* const end = text.data() + text.size();
  const auto [slash, error] = std::from_chars(text.data(), end, part.index);
  bool good = error == std::errc() && slash != end && *slash == '/';
  if (good) {
    const auto [stop, second] = std::from_chars(slash + 1, end, part.count);
    good = second == std::errc() && stop == end && part.index >= 1 && part.index <= part.count && part.count <= 99999;
  }
  if (!good) throw Error(ErrorCode::kUsage, cat("'", text, "' is not a part; wanted one such as 1/4, 2/4, 3/4 or 4/4"));
  return part;
}

std::string Part::to_text() const { return cat(index, "/", count); }

struct PartialDirectory::State {
  OutputPlace target;
  std::string work_name;  // beside the target
  fs::path work;
  Part part;
  bool owns = false, keep = false, sealed = false, named = false;
  WorkIdentity identity;
  Descriptor directory, lock_file, alone_file;  // of `work`; the name may change, but the open descriptor does not
  Journal journal;

  explicit State(OutputPlace place)
      : target(std::move(place)),
        work_name(cat(".", target.name(), ".tmp-work")),
        work(target.parent_path() / work_name) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (owns && !keep && !sealed) remove_work();  // a destructor cannot report an error; the next run tries again
  }

  fs::path model() const { return work / kModel; }
  fs::path journals() const { return work / kJournals; }

  [[noreturn]] void refuse(std::string_view found) const;
  bool open_directory();
  bool open_lock();
  void take_lock();
  void check_is_ours() const;
  std::vector<std::string> names() const;
  bool is_there(const char* name) const;
  bool holds_lock() const;
  void make_directory(const char* name) const;
  void clear() const;
  void remove_work() const;
  void check_journals() const;
  std::vector<uint32_t> missing_parts() const;
  void sync_names() const;
  void move_into_place();
};

void PartialDirectory::State::refuse(std::string_view found) const {
  throw Error(ErrorCode::kUsage, cat(work, ": ", found, "; ", target.given(),
                                     " is made there and needs a directory of its own (move it away, or choose another "
                                     "output)"));
}

/// False if it was removed in the meantime.
bool PartialDirectory::State::open_directory() {
  const int parent = target.parent().get();
  if (::mkdirat(parent, work_name.c_str(), 0777) != 0 && errno != EEXIST)
    throw_io(work.string(), "make the directory", errno);
  directory = Descriptor(::openat(parent, work_name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory && errno == ENOENT) return false;
  if (!directory && (errno == ELOOP || errno == ENOTDIR)) refuse("is a symbolic link or a file");
  if (!directory) throw_io(work.string(), "open it", errno);
  struct stat status{};
  if (::fstat(directory.get(), &status) != 0) throw_io(work.string(), "read its owner", errno);
  if (status.st_uid != ::geteuid()) refuse("belongs to another user");
  return true;
}

/// False if it was removed in the meantime. A directory without a lock must be empty, because it could belong to
/// somebody else.
bool PartialDirectory::State::open_lock() {
  constexpr int kFlags = O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
  lock_file = Descriptor(::openat(directory.get(), kLock, kFlags));
  if (!lock_file && errno == ENOENT) {
    if (!names().empty())
      return is_there(kLock) ? open_lock() : (refuse("has files that coppice did not write"), false);
    lock_file = Descriptor(::openat(directory.get(), kLock, kFlags | O_CREAT, 0666));
    if (!lock_file && errno == ENOENT) return false;
  }
  if (!lock_file) throw_io((work / kLock).string(), "open it", errno);
  struct stat status{};
  if (::fstat(lock_file.get(), &status) != 0 || !S_ISREG(status.st_mode)) refuse("has a lock that is not a file");
  return true;
}

// A process that does all the work needs the directory alone; parts share it.
void PartialDirectory::State::take_lock() {
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (!open_directory() || !open_lock()) continue;  // an earlier process has just ended and removed it
    if (lock(lock_file, (part.count == 1 ? LOCK_EX : LOCK_SH) | LOCK_NB) == Lock::kHeldByAnother) {
      throw Error(ErrorCode::kIo, cat(target.given(), ": another process is writing it, in ", work,
                                      " (wait for it to end, or choose another output)"));
    }
    if (!holds_lock()) continue;
    check_is_ours();
    const int number = detail::write_all(lock_file.get(), std::as_bytes(std::span(kMark)), 0);
    if (number != 0) throw_io((work / kLock).string(), "write it", number);
    owns = true;
    return;
  }
  throw Error(ErrorCode::kIo, cat(work, ": other processes create and remove it repeatedly (choose another output)"));
}

/// Only directories that coppice made may be removed or continued. They are recognised by the mark in the lock or, from
/// versions without it, by the beginning of a journal; an empty directory needs no proof.
void PartialDirectory::State::check_is_ours() const {
  for (const char* name : {kModel, kJournals}) {
    struct stat status{};
    const bool is_one = ::fstatat(directory.get(), name, &status, AT_SYMLINK_NOFOLLOW) == 0;
    if (is_one && !S_ISDIR(status.st_mode)) refuse(cat("holds a '", name, "' that is not a directory"));
  }
  std::string text(kMark.size(), '\0');
  if (::pread(lock_file.get(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) && text == kMark)
    return;
  struct stat status{};
  if (::fstat(lock_file.get(), &status) != 0 || status.st_size != 0) refuse("has a lock of another program");
  for (const std::string& name : names()) {
    if (name != kLock && name != kAlone && name != kModel && name != kJournals) refuse(cat("holds '", name, "'"));
  }
  std::error_code none;
  bool is_empty = !is_there(kModel) || fs::is_empty(model(), none);
  for (const auto& file : fs::directory_iterator(journals(), none)) {
    is_empty = false;
    if (Journal::look(file.path())) return;
  }
  if (!is_empty) refuse("has files but no journal of coppice");
}

std::vector<std::string> PartialDirectory::State::names() const { return detail::names_in(directory.get()); }

bool PartialDirectory::State::is_there(const char* name) const {
  struct stat status{};
  return ::fstatat(directory.get(), name, &status, AT_SYMLINK_NOFOLLOW) == 0;
}

/// Whether the lock belongs to the directory that has the name now.
bool PartialDirectory::State::holds_lock() const {
  struct stat mine{}, there{}, opened{}, named_now{};
  return ::fstat(lock_file.get(), &mine) == 0 && ::fstatat(directory.get(), kLock, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
         is_same(mine, there) && ::fstat(directory.get(), &opened) == 0 &&
         ::fstatat(target.parent().get(), work_name.c_str(), &named_now, AT_SYMLINK_NOFOLLOW) == 0 &&
         is_same(opened, named_now);
}

void PartialDirectory::State::make_directory(const char* name) const {
  if (::mkdirat(directory.get(), name, 0777) == 0 || errno == EEXIST) return;
  throw_io((work / name).string(), "make the directory", errno);
}

// The journals first: if this is killed halfway, no removed work counts as done.
void PartialDirectory::State::clear() const {
  for (const char* name : {kJournals, kModel}) {
    const int number = detail::remove_tree_at(directory.get(), name);
    if (number != 0) throw_io((work / name).string(), "remove what a stopped process left there", number);
  }
}

// The lock last, because the contents of a directory without one count as somebody else's.
void PartialDirectory::State::remove_work() const {
  for (const char* name : {kJournals, kModel, kAlone}) {
    if (detail::remove_tree_at(directory.get(), name) != 0) return;
  }
  if (!holds_lock()) return;
  ::unlinkat(directory.get(), kLock, 0);
  ::unlinkat(target.parent().get(), work_name.c_str(), AT_REMOVEDIR);
}

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
  for (const auto& file : fs::directory_iterator(journals())) {
    const auto seen = Journal::look(file.path());
    if (!seen) continue;
    if (seen->part.count != part.count) {
      throw Error(ErrorCode::kUsage,
                  cat(target.given(), ": was begun in ", seen->part.count, seen->part.count == 1 ? " part" : " parts",
                      "; wanted ", part.count, " (use the earlier number of parts, or remove ", work, ")"));
    }
    if (seen->identity.plan != identity.plan) {
      throw Error(ErrorCode::kUsage,
                  cat(target.given(), ": was begun with another model, other settings or another version",
                      differing(seen->identity.plan, identity.plan), ", in ", work,
                      "; wanted the same ones (use them, or remove that directory)"));
    }
    if (seen->part == part && seen->identity.source != identity.source) {
      throw Error(ErrorCode::kFormat, cat(target.given(), ": the source has changed since this was begun in ", work,
                                          ", so copied parts may not fit together (remove that directory)"));
    }
  }
}

std::vector<uint32_t> PartialDirectory::State::missing_parts() const {
  std::vector<uint32_t> missing;
  for (uint32_t i = 1; i <= part.count; ++i) {
    const auto seen = Journal::look(journals() / Journal::name({i, part.count}));
    if (!seen || !seen->complete) missing.push_back(i);
  }
  return missing;
}

// Recorded units are in files whose directory entries are on the disk, too.
void PartialDirectory::State::sync_names() const {
  for (const auto& entry : fs::recursive_directory_iterator(model())) {
    if (entry.is_directory()) detail::sync_directory(entry.path());
  }
  for (const auto& path : {model(), work}) detail::sync_directory(path);
  detail::sync(target.parent(), target.parent_path());
}

void PartialDirectory::State::move_into_place() {
  try {
    detail::sync_tree(model());
  } catch (const fs::filesystem_error& e) {
    throw_io(target.given().string(), "list what was written", e.code().value());
  }
  const int number = detail::rename_new(directory.get(), kModel, target.parent().get(), target.name().c_str());
  if (number != 0) {
    keep = true;
    throw Error(ErrorCode::kIo,
                cat(target.given(), ": cannot be renamed to its final name: ", std::generic_category().message(number),
                    "; the finished output stays at ", model(), " (rename it)"));
  }
  sealed = true;
  detail::sync(target.parent(), target.parent_path());
  remove_work();  // the output is complete; at most a few small files remain
}

PartialDirectory::PartialDirectory(OutputPlace target, Part part, bool resume, WorkIdentity identity)
    : state_(std::make_unique<State>(std::move(target))) {
  auto& s = *state_;
  s.part = part;
  s.identity = std::move(identity);
  const bool continues = resume || part.count > 1;
  s.keep = continues;
  s.target.check_free();
  s.take_lock();
  try {
    s.alone_file =
        Descriptor(::openat(s.directory.get(), kAlone, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0666));
    if (!s.alone_file) throw_io((s.work / kAlone).string(), "open it", errno);
    alone([&] {
      // Without `model`, a process ended between the rename of the output and the cleanup.
      if (!continues || !s.is_there(kModel)) s.clear();
      s.make_directory(kModel);
      s.make_directory(kJournals);
      s.check_journals();
      s.journal = Journal(s.journals() / Journal::name(part), part, s.identity);
    });
  } catch (const fs::filesystem_error& e) {
    throw_io(s.work.string(), "list it", e.code().value());
  }
}

PartialDirectory::~PartialDirectory() = default;

std::filesystem::path PartialDirectory::path() const { return state_->model(); }
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

void PartialDirectory::discard() { state_->keep = false; }

std::vector<uint32_t> PartialDirectory::seal(const std::function<void()>& finish) {
  auto& s = *state_;
  s.journal.complete();
  std::vector<uint32_t> missing;
  alone([&] {
    if (!s.holds_lock()) {
      s.sealed = true;                  // the name does not belong to this process any more
      if (s.target.is_taken()) return;  // another part finished while this one waited
      throw Error(ErrorCode::kIo,
                  cat(s.target.given(), ": ", s.work,
                      " was moved or replaced while it was written (start again, and do not change it)"));
    }
    missing = s.missing_parts();
    if (!missing.empty()) return;
    finish();
    s.move_into_place();
  });
  return missing;
}

}  // namespace coppice::io
