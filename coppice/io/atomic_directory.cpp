#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <system_error>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

using detail::rename_new;
using detail::sync_tree;
using detail::throw_io;

/// A file that marks an unfinished output; it is removed before the final rename.
constexpr const char* kMark = ".unfinished-output-of-coppice";

bool is_running(pid_t pid) { return ::kill(pid, 0) == 0 || errno == EPERM; }

/// An unfinished output of coppice that no process is writing, locked by this call.
Descriptor open_abandoned(int parent, const std::string& name) {
  Descriptor directory(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat status{}, mark{};
  if (!directory || ::fstat(directory.get(), &status) != 0 || status.st_uid != ::geteuid()) return {};
  if (::fstatat(directory.get(), kMark, &mark, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(mark.st_mode)) return {};
  if (::flock(directory.get(), LOCK_EX | LOCK_NB) == 0) return directory;
  return {};
}

// The process id alone is not unique: containers reuse a few ids, and other machines have the same ones.
void remove_stale(int parent, const std::string& prefix) {
  for (const std::string& name : detail::names_in(parent)) {
    if (!name.starts_with(prefix)) continue;
    pid_t pid = 0;
    const auto* end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, pid);
    if (error != std::errc() || stop != end || pid <= 0 || (pid != ::getpid() && is_running(pid))) continue;
    if (open_abandoned(parent, name)) (void)detail::remove_tree_at(parent, name.c_str());
  }
}

}  // namespace

AtomicDirectory::AtomicDirectory(OutputPlace target) : target_(std::move(target)) {
  target_.check_free();
  const int parent = target_.parent().get();
  const auto prefix = cat(".", target_.name(), ".tmp-");
  remove_stale(parent, prefix);
  name_ = cat(prefix, static_cast<int64_t>(::getpid()));
  temporary_ = target_.parent_path() / name_;
  if (::mkdirat(parent, name_.c_str(), 0777) != 0) {
    const int number = errno;
    throw_io(target_.given().string(), cat("make the directory ", temporary_), number);
  }
  // Without locks (on some network file systems) only the process id is checked.
  lock_ = Descriptor(::openat(parent, name_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  try {
    if (!lock_) throw_io(temporary_.string(), "open it", errno);
    ::flock(lock_.get(), LOCK_EX | LOCK_NB);
    detail::create_file_at(lock_.get(), kMark, temporary_ / kMark);
  } catch (...) {
    ::unlinkat(parent, name_.c_str(), AT_REMOVEDIR);
    throw;
  }
}

AtomicDirectory::~AtomicDirectory() {
  // A destructor cannot report an error; the next run tries again.
  if (!committed_) (void)detail::remove_tree_at(target_.parent().get(), name_.c_str());
}

void AtomicDirectory::commit() {
  ::unlinkat(lock_.get(), kMark, 0);
  try {
    sync_tree(temporary_);
  } catch (const fs::filesystem_error& e) {
    throw_io(target_.given().string(), "list what was written", e.code().value());
  }
  const int parent = target_.parent().get();
  const int number = rename_new(parent, name_.c_str(), parent, target_.name().c_str());
  committed_ = true;
  if (number != 0) {
    throw Error(ErrorCode::kIo,
                cat(target_.given(), ": cannot be renamed to its final name: ", std::generic_category().message(number),
                    "; the finished output stays at ", temporary_, " (rename it)"));
  }
  detail::sync(target_.parent(), target_.parent_path());
}

}  // namespace coppice::io
