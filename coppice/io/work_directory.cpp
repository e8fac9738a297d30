#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/journal_detail.h"
#include "coppice/io/partial_directory.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/work_directory_detail.h"

namespace coppice::io::detail {
namespace fs = std::filesystem;
namespace {

constexpr const char* kLock = "lock";
constexpr std::string_view kDot = ".", kSuffix = ".tmp-work";
/// The contents of the lock file in coppice's own directories.
constexpr std::string_view kMark = "a directory of unfinished work of coppice\n";

}  // namespace

std::string WorkDirectory::name_of(std::string_view target) { return cat(kDot, target, kSuffix); }

WorkDirectory::WorkDirectory(OutputPlace target, int how)
    : target_(std::move(target)), name_(name_of(target_.name())), path_(target_.parent_path() / name_) {
  target_.check_free();
  take_lock(how);
}

WorkDirectory::~WorkDirectory() {
  if (!stays_) remove();  // a destructor cannot report an error; the next run tries again
}

void WorkDirectory::refuse(std::string_view found) const {
  throw Error(ErrorCode::kUsage, cat(path_, ": ", found, "; ", target_.given(),
                                     " is made there and needs a directory of its own (move it away, or choose another "
                                     "output)"));
}

/// False if it was removed in the meantime.
bool WorkDirectory::open_directory() {
  const int parent = target_.parent().get();
  if (::mkdirat(parent, name_.c_str(), 0777) != 0 && errno != EEXIST)
    throw_io(path_.string(), "make the directory", errno);
  directory_ = Descriptor(::openat(parent, name_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory_ && errno == ENOENT) return false;
  if (!directory_ && (errno == ELOOP || errno == ENOTDIR)) refuse("is a symbolic link or a file");
  if (!directory_) throw_io(path_.string(), "open it", errno);
  struct stat status{};
  if (::fstat(directory_.get(), &status) != 0) throw_io(path_.string(), "read its owner", errno);
  if (status.st_uid != ::geteuid()) refuse("belongs to another user");
  return true;
}

/// False if it was removed in the meantime. A directory without a lock must be empty, because it could belong to
/// somebody else.
bool WorkDirectory::open_lock() {
  constexpr int kFlags = O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
  lock_file_ = Descriptor(::openat(directory_.get(), kLock, kFlags));
  if (!lock_file_ && errno == ENOENT) {
    if (!names_in(directory_.get()).empty())
      return has(kLock) ? open_lock() : (refuse("has files that coppice did not write"), false);
    lock_file_ = Descriptor(::openat(directory_.get(), kLock, kFlags | O_CREAT, 0666));
    if (!lock_file_ && errno == ENOENT) return false;
  }
  if (!lock_file_) throw_io((path_ / kLock).string(), "open it", errno);
  struct stat status{};
  if (::fstat(lock_file_.get(), &status) != 0 || !S_ISREG(status.st_mode)) refuse("has a lock that is not a file");
  return true;
}

void WorkDirectory::take_lock(int how) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (!open_directory() || !open_lock()) continue;  // an earlier process has just ended and removed it
    if (lock(lock_file_, how | LOCK_NB) == Lock::kHeldByAnother) {
      throw Error(ErrorCode::kIo, cat(target_.given(), ": another process is writing it, in ", path_,
                                      " (wait for it to end, or choose another output)"));
    }
    if (!is_held()) continue;
    check_is_ours();
    const int number = write_all(lock_file_.get(), std::as_bytes(std::span(kMark)), 0);
    if (number != 0) throw_io((path_ / kLock).string(), "write it", number);
    return;
  }
  throw Error(ErrorCode::kIo, cat(path_, ": other processes create and remove it repeatedly (choose another output)"));
}

/// Only directories that coppice made may be removed or continued. They are recognised by the mark in the lock or, from
/// versions without it, by the beginning of a journal; an empty directory needs no proof.
void WorkDirectory::check_is_ours() const {
  for (const char* name : {kModel, kJournals}) {
    struct stat status{};
    const bool is_one = ::fstatat(directory_.get(), name, &status, AT_SYMLINK_NOFOLLOW) == 0;
    if (is_one && !S_ISDIR(status.st_mode)) refuse(cat("holds a '", name, "' that is not a directory"));
  }
  std::string text(kMark.size(), '\0');
  if (::pread(lock_file_.get(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) && text == kMark)
    return;
  struct stat status{};
  if (::fstat(lock_file_.get(), &status) != 0 || status.st_size != 0) refuse("has a lock of another program");
  for (const std::string& name : names_in(directory_.get())) {
    if (name != kLock && name != kAlone && name != kModel && name != kJournals) refuse(cat("holds '", name, "'"));
  }
  std::error_code none;
  bool is_empty = !has(kModel) || fs::is_empty(model(), none);
  for (const auto& file : fs::directory_iterator(journals(), none)) {
    is_empty = false;
    if (Journal::look(file.path())) return;
  }
  if (!is_empty) refuse("has files but no journal of coppice");
}

bool WorkDirectory::has(const char* name) const {
  struct stat status{};
  return ::fstatat(directory_.get(), name, &status, AT_SYMLINK_NOFOLLOW) == 0;
}

/// Whether the lock belongs to the directory that has the name now.
bool WorkDirectory::is_held() const {
  struct stat mine{}, there{}, opened{}, named_now{};
  return ::fstat(lock_file_.get(), &mine) == 0 &&
         ::fstatat(directory_.get(), kLock, &there, AT_SYMLINK_NOFOLLOW) == 0 && is_same(mine, there) &&
         ::fstat(directory_.get(), &opened) == 0 &&
         ::fstatat(target_.parent().get(), name_.c_str(), &named_now, AT_SYMLINK_NOFOLLOW) == 0 &&
         is_same(opened, named_now);
}

void WorkDirectory::make_directory(const char* name) const {
  if (::mkdirat(directory_.get(), name, 0777) == 0 || errno == EEXIST) return;
  throw_io((path_ / name).string(), "make the directory", errno);
}

// The journals first: if this is killed halfway, no removed work counts as done.
void WorkDirectory::clear() const {
  for (const char* name : {kJournals, kModel}) {
    const int number = remove_tree_at(directory_.get(), name);
    if (number != 0) throw_io((path_ / name).string(), "remove what a stopped process left there", number);
  }
}

// The lock last, because the contents of a directory without one count as somebody else's.
void WorkDirectory::remove() const {
  for (const char* name : {kJournals, kModel, kAlone}) {
    if (remove_tree_at(directory_.get(), name) != 0) return;
  }
  if (!is_held()) return;
  ::unlinkat(directory_.get(), kLock, 0);
  ::unlinkat(target_.parent().get(), name_.c_str(), AT_REMOVEDIR);
}

void WorkDirectory::move_into_place() {
  try {
    sync_tree(model());
  } catch (const fs::filesystem_error& e) {
    throw_io(target_.given().string(), "list what was written", e.code().value());
  }
  const int number = rename_new(directory_.get(), kModel, target_.parent().get(), target_.name().c_str());
  if (number != 0) {
    stays_ = true;
    throw Error(ErrorCode::kIo,
                cat(target_.given(), ": cannot be renamed to its final name: ", std::generic_category().message(number),
                    "; the finished output stays at ", model(), " (rename it)"));
  }
  stays_ = true;
  sync(target_.parent(), target_.parent_path());
  remove();  // the output is complete; at most a few small files remain
}

}  // namespace coppice::io::detail

namespace coppice::io {
namespace fs = std::filesystem;

void remove_leftovers(const fs::path& target) {
  try {
    OutputPlace place(target);
    struct stat status{};
    const std::string name = detail::WorkDirectory::name_of(place.name());
    if (::fstatat(place.parent().get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) return;
    const detail::WorkDirectory taken(std::move(place), LOCK_EX);  // and its destructor removes it
  } catch (const Error&) {
    return;  // it is somebody else's, or at work
  }
}

std::vector<std::string> leftovers(const fs::path& directory) {
  std::vector<std::string> out;
  std::error_code unreadable;
  for (const auto& entry : fs::directory_iterator(directory, unreadable)) {
    const std::string name = entry.path().filename().string();
    const size_t around = detail::kDot.size() + detail::kSuffix.size();
    if (name.size() > around && name.starts_with(detail::kDot) && name.ends_with(detail::kSuffix)) {
      out.push_back(name.substr(detail::kDot.size(), name.size() - around));
    }
  }
  std::ranges::sort(out);
  return out;
}

}  // namespace coppice::io
