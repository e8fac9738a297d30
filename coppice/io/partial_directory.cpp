#include "coppice/io/partial_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <map>
#include <set>
#include <string>
#include <system_error>
#include <utility>

#include "coppice/base/error.h"
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

void make_directory(const fs::path& path) {
  if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) throw_io(path.string(), "make the directory", errno);
}

enum class Lock { kTaken, kHeldByAnother };

// File systems without locks (some network ones) let everybody pass.
Lock lock(const Descriptor& file, int how) {
  while (::flock(file.get(), how) != 0) {
    if (errno == EWOULDBLOCK) return Lock::kHeldByAnother;
    if (errno != EINTR) break;
  }
  return Lock::kTaken;
}

Descriptor open_lock(const fs::path& path) {
  return Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666));
}

bool is_at(const Descriptor& file, const fs::path& path) {
  struct stat mine, there;
  return ::fstat(file.get(), &mine) == 0 && ::stat(path.c_str(), &there) == 0 && mine.st_ino == there.st_ino &&
         mine.st_dev == there.st_dev;
}

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
  if (!good) throw Error(ErrorCode::kUsage, cat("'", text, "' is no part; wanted one such as 1/4, 2/4, 3/4 or 4/4"));
  return part;
}

std::string Part::to_text() const { return cat(index, "/", count); }

struct PartialDirectory::State {
  fs::path target, work;
  Part part;
  bool owns = false, keep = false, sealed = false, named = false;
  WorkIdentity identity;
  Descriptor lock_file, alone_file;
  Journal journal;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (!owns || keep || sealed) return;
    std::error_code ignored;  // a destructor has nobody to tell; the next run tries again
    fs::remove_all(journals(), ignored);
    fs::remove_all(work, ignored);
  }

  fs::path model() const { return work / "model"; }
  fs::path journals() const { return work / "journals"; }

  void take_lock();
  void clear();
  void check_journals() const;
  std::vector<uint32_t> missing_parts() const;
  void sync_names() const;
  void move_into_place();
};

// One process that does everything is alone in the directory; parts share it.
void PartialDirectory::State::take_lock() {
  for (int attempt = 0; attempt < 100; ++attempt) {
    make_directory(work);
    lock_file = open_lock(work / "lock");
    if (!lock_file && errno == ENOENT) continue;  // the process before this one has just ended and tidied up
    if (!lock_file) throw_io((work / "lock").string(), "open it", errno);
    if (lock(lock_file, (part.count == 1 ? LOCK_EX : LOCK_SH) | LOCK_NB) == Lock::kHeldByAnother) {
      throw Error(ErrorCode::kIo,
                  cat(target, ": another process is writing it, in ", work, " (wait for it, or give another output)"));
    }
    owns = is_at(lock_file, work / "lock");
    if (owns) return;
  }
  throw Error(ErrorCode::kIo, cat(work, ": other processes make and remove it all the time (give another output)"));
}

// The journals first: were this killed halfway, nothing would count as done that is gone.
void PartialDirectory::State::clear() {
  std::error_code failure;
  fs::remove_all(journals(), failure);
  if (!failure) fs::remove_all(model(), failure);
  if (failure) throw_io(work.string(), "remove what a stopped process left there", failure.value());
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

// " (--seed differs)": options by name; what follows from them only where no option differs.
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

// All parts must be of the same work.
void PartialDirectory::State::check_journals() const {
  for (const auto& file : fs::directory_iterator(journals())) {
    const auto seen = Journal::look(file.path());
    if (!seen) continue;
    if (seen->part.count != part.count) {
      throw Error(ErrorCode::kUsage,
                  cat(target, ": begun in ", seen->part.count, seen->part.count == 1 ? " part" : " parts", ", wanted ",
                      part.count, " (give the number of parts it was begun with, or remove ", work, ")"));
    }
    if (seen->identity.plan != identity.plan) {
      throw Error(ErrorCode::kUsage, cat(target, ": begun with another model, other settings or another version",
                                         differing(seen->identity.plan, identity.plan), ", in ", work,
                                         "; wanted the same ones (give them, or remove that directory)"));
    }
    if (seen->part == part && seen->identity.source != identity.source) {
      throw Error(ErrorCode::kFormat, cat(target, ": the source has changed since this was begun, in ", work,
                                          "; what was copied may be of either state (remove that directory)"));
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

// What is recorded lies in files whose names are on the disk, too.
void PartialDirectory::State::sync_names() const {
  for (const auto& entry : fs::recursive_directory_iterator(model())) {
    if (entry.is_directory()) detail::sync_directory(entry.path());
  }
  for (const auto& directory : {model(), work, detail::parent_of(target)}) detail::sync_directory(directory);
}

void PartialDirectory::State::move_into_place() {
  try {
    detail::sync_tree(model());
  } catch (const fs::filesystem_error& e) {
    throw_io(target.string(), "list what was written", e.code().value());
  }
  if (const int number = detail::rename_new(model(), target); number != 0) {
    keep = true;
    throw Error(ErrorCode::kIo, cat(target, ": cannot take its name: ", std::generic_category().message(number),
                                    "; the finished output stays at ", model(), " (rename it)"));
  }
  sealed = true;
  detail::sync_directory(detail::parent_of(target));
  std::error_code ignored;  // the output is whole; what may be left is a few small files
  fs::remove_all(work, ignored);
}

PartialDirectory::PartialDirectory(fs::path target, Part part, bool resume, WorkIdentity identity)
    : state_(std::make_unique<State>()) {
  auto& s = *state_;
  s.target = detail::without_trailing_slash(std::move(target));
  s.work = detail::parent_of(s.target) / cat(".", s.target.filename(), ".tmp-work");
  s.part = part;
  s.identity = std::move(identity);
  const bool continues = resume || part.count > 1;
  s.keep = continues;
  check_output_directory(s.target, {});
  s.take_lock();
  try {
    s.alone_file = open_lock(s.work / "alone");
    if (!s.alone_file) throw_io((s.work / "alone").string(), "open it", errno);
    alone([&] {
      // Without `model` a process ended between giving the output its name and tidying up.
      if (!continues || !fs::exists(s.model())) s.clear();
      make_directory(s.model());
      make_directory(s.journals());
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
  lock(state_->alone_file, LOCK_EX);
  const Release release{state_->alone_file};
  act();
}

void PartialDirectory::discard() { state_->keep = false; }

std::vector<uint32_t> PartialDirectory::seal(const std::function<void()>& finish) {
  auto& s = *state_;
  s.journal.complete();
  std::vector<uint32_t> missing;
  alone([&] {
    std::error_code failure;
    if (!is_at(s.lock_file, s.work / "lock") && fs::exists(s.target, failure)) {
      s.sealed = true;  // by another part, while this one waited
      return;
    }
    missing = s.missing_parts();
    if (!missing.empty()) return;
    finish();
    s.move_into_place();
  });
  return missing;
}

}  // namespace coppice::io
