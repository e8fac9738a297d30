#pragma once

#include <cstdint>

namespace coppice {

/// The most memory that this program has had resident so far, mapped files included.
uint64_t peak_rss_bytes();

/// What the machine has.
uint64_t physical_memory_bytes();

/// From now on freed memory stays with the program. For loops that take the same large blocks again and again, which
/// otherwise cost a page fault for every 4 KiB each time.
void keep_freed_memory();

/// From now on blocks of so many bytes (32 MiB at most) or more come from the system and go back to it when freed;
/// what is freed of smaller ones stays for the next. Without effect after `keep_freed_memory`.
///
/// For loops that hold something else each time: what is long held is taken under a low limit, or the pieces left
/// between it would add up; what comes and goes meanwhile under a high one, or every block would cost its page faults.
void take_blocks_from_system(uint64_t bytes);

}  // namespace coppice
