#pragma once

#include <cstdint>

namespace coppice {

/// The peak resident memory of this process so far, including mapped files.
uint64_t peak_rss_bytes();

/// The physical memory of the machine.
uint64_t physical_memory_bytes();

/// The part of it that holds nothing now.
uint64_t free_memory_bytes();

/// From now on freed memory is not returned to the system. For loops that allocate the same large blocks again and
/// again, which would otherwise cost a page fault per 4 KiB each time.
void keep_freed_memory();

/// From now on blocks of `bytes` or more (32 MiB at most) are mapped from the system and returned to it when freed;
/// smaller freed blocks are kept for reuse. Of this and `keep_freed_memory` the last call counts.
///
/// Use a low limit while allocating long-lived blocks, so that freed gaps between them return to the system; use a high
/// limit for short-lived blocks, so that they are reused without page faults.
void take_blocks_from_system(uint64_t bytes);

}  // namespace coppice
