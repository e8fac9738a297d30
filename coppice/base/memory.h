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

/// From now on large blocks go back to the system when they are freed. For loops that hold something else each time,
/// between which the pieces left over would add up; without effect after `keep_freed_memory`.
void return_freed_memory();

}  // namespace coppice
