#include "coppice/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <exception>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "coppice/base/log.h"
#include "coppice/base/text.h"

namespace coppice {
namespace {

size_t cores_of_affinity() {
  for (int bits = 1024; bits <= 1 << 20; bits *= 2) {
    cpu_set_t* set = CPU_ALLOC(bits);
    const size_t bytes = CPU_ALLOC_SIZE(bits);
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    const int error = errno;
    const int count = known ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return static_cast<size_t>(count);
    if (error != EINVAL) break;  // EINVAL: the machine has more cores than the set has room for
  }
  return std::max(1U, std::thread::hardware_concurrency());
}

// The number of cores that one cgroup v2 directory allows ("max 100000" or "150000 100000"), rounded up; `limit` if it
// sets no limit.
size_t cores_of_quota(const std::filesystem::path& folder, size_t limit) {
  std::ifstream file(folder / "cpu.max");
  std::string quota_text;
  double period = 0;
  if (!(file >> quota_text >> period) || period <= 0) return limit;
  double quota = 0;
  const auto end = std::from_chars(quota_text.data(), quota_text.data() + quota_text.size(), quota);
  if (end.ec != std::errc() || quota <= 0) return limit;
  return std::min(limit, std::max(size_t{1}, static_cast<size_t>(quota / period + 0.999)));
}

size_t cores_of_cgroup(size_t limit) {
  const std::filesystem::path root = "/sys/fs/cgroup";
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("0::/")) continue;
    for (auto folder = std::filesystem::path(line.substr(4)); !folder.empty(); folder = folder.parent_path()) {
      limit = cores_of_quota(root / folder, limit);
    }
  }
  return cores_of_quota(root, limit);
}

}  // namespace

size_t default_threads() {
  static const size_t count = cores_of_cgroup(cores_of_affinity());
  return count;
}

size_t most_threads() { return std::max<size_t>(64, 8 * default_threads()); }

void parallel_for(size_t count, size_t threads, const std::function<void(size_t)>& task) {
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  std::mutex mutex;
  std::exception_ptr error;
  size_t error_index = count;

  const auto work = [&] {
    while (!failed.load(std::memory_order_relaxed)) {
      const size_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      try {
        task(i);
      } catch (...) {
        failed.store(true, std::memory_order_relaxed);
        const std::lock_guard lock(mutex);
        if (i < error_index) {
          error_index = i;
          error = std::current_exception();
        }
      }
    }
  };

  const size_t helpers = std::min(std::max<size_t>(threads, 1), count) - (count > 0 ? 1 : 0);
  {
    std::vector<std::jthread> pool;
    pool.reserve(helpers);
    try {
      while (pool.size() < helpers) pool.emplace_back(work);
    } catch (const std::system_error&) {
      log_warning(cat("the system grants ", pool.size() + 1, " of ", helpers + 1, " threads; the work runs on those"));
    }
    work();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace coppice
