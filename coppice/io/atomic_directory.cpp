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

using detail::parent_of;
using detail::rename_new;
using detail::sync_tree;
using detail::throw_io;

/// What only an unfinished output has; gone before it takes its name.
constexpr const char* kMark = ".unfinished-output-of-coppice";

bool is_running(pid_t pid) { return ::kill(pid, 0) == 0 || errno == EPERM; }

/// An unfinished output of ours that no process writes any more, locked.
Descriptor open_abandoned(const fs::path& path) {
  Descriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat status{}, mark{};
  if (!directory || ::fstat(directory.get(), &status) != 0 || status.st_uid != ::geteuid()) return {};
  if (::fstatat(directory.get(), kMark, &mark, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(mark.st_mode)) return {};
  if (::flock(directory.get(), LOCK_EX | LOCK_NB) == 0) return directory;
  return {};
}

// The process id alone would not do: in containers the same few ids return, and other machines have their own.
void remove_stale(const fs::path& parent, const std::string& prefix) {
  std::error_code failure;
  const Descriptor in(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!in) return;
  for (const auto& entry : fs::directory_iterator(parent, failure)) {
    const auto name = entry.path().filename().string();
    if (!name.starts_with(prefix)) continue;
    pid_t pid = 0;
    const auto* end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, pid);
    if (error != std::errc() || stop != end || pid <= 0 || (pid != ::getpid() && is_running(pid))) continue;
    if (open_abandoned(entry.path())) (void)detail::remove_tree_at(in.get(), name.c_str());
  }
}

}  // namespace

AtomicDirectory::AtomicDirectory(fs::path target) : target_(detail::without_trailing_slash(std::move(target))) {
  check_output_directory(target_, {});
  const auto parent = parent_of(target_);
  const auto prefix = cat(".", target_.filename(), ".tmp-");
  remove_stale(parent, prefix);
  temporary_ = parent / cat(prefix, static_cast<int64_t>(::getpid()));
  if (::mkdir(temporary_.c_str(), 0777) != 0) {
    const int number = errno;
    throw_io(target_.string(), cat("make the directory ", temporary_), number);
  }
  // Without locks (some network file systems) the process id has to do.
  lock_ = ::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (lock_ >= 0) ::flock(lock_, LOCK_EX | LOCK_NB);
  try {
    detail::create_file(temporary_ / kMark);
  } catch (...) {
    ::rmdir(temporary_.c_str());
    if (lock_ >= 0) ::close(lock_);
    throw;
  }
}

AtomicDirectory::~AtomicDirectory() {
  std::error_code ignored;  // a destructor has nobody to tell; the next run tries again
  if (!committed_) fs::remove_all(temporary_, ignored);
  if (lock_ >= 0) ::close(lock_);
}

void AtomicDirectory::commit() {
  ::unlink((temporary_ / kMark).c_str());
  try {
    sync_tree(temporary_);
  } catch (const fs::filesystem_error& e) {
    throw_io(target_.string(), "list what was written", e.code().value());
  }
  const int number = rename_new(temporary_, target_);
  committed_ = true;
  if (number != 0) {
    throw Error(ErrorCode::kIo, cat(target_, ": cannot take its name: ", std::generic_category().message(number),
                                    "; the finished output stays at ", temporary_, " (rename it)"));
  }
  detail::sync_directory(parent_of(target_));
}

}  // namespace coppice::io
