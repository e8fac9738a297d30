#include "coppice/io/directory_lock.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>

namespace coppice::io {

std::optional<DirectoryLock> DirectoryLock::take(const std::filesystem::path& directory) {
  Descriptor open(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!open) throw_io(directory.string(), "open it", errno);
  if (::flock(open.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return std::nullopt;
  return DirectoryLock(std::move(open));
}

}  // namespace coppice::io
