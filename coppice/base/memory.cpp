#include "coppice/base/memory.h"

#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

namespace coppice {

// getrusage alone would include the memory of the parent process before exec.
uint64_t peak_rss_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::strtoull(line.c_str() + 6, nullptr, 10) * 1024;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

uint64_t physical_memory_bytes() {
  return static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGE_SIZE));
}

uint64_t free_memory_bytes() {
  return static_cast<uint64_t>(::sysconf(_SC_AVPHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGE_SIZE));
}

void keep_freed_memory() {
  (void)::mallopt(M_MMAP_MAX, 0);  // its threshold cannot be set above 32 MiB
  (void)::mallopt(M_TRIM_THRESHOLD, -1);
}

void take_blocks_from_system(uint64_t bytes) {
  (void)::mallopt(M_MMAP_MAX, 65536);  // its default
  (void)::mallopt(M_MMAP_THRESHOLD, static_cast<int>(std::min<uint64_t>(bytes, 32 << 20)));
  (void)::mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

}  // namespace coppice
