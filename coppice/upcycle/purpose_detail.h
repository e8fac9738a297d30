#pragma once

#include <cstdint>

namespace coppice::upcycle {

// What the numbers of a random stream are for (RngKey::purpose). Part of the bytes of every grown model: never
// renumber.
inline constexpr uint32_t kNoise = 1;         ///< added to a parent's values
inline constexpr uint32_t kPermutation = 2;   ///< order of an expert's units
inline constexpr uint32_t kDroppedUnits = 3;  ///< which units are redrawn
inline constexpr uint32_t kRedraw = 4;        ///< their new values
inline constexpr uint32_t kSelection = 5;     ///< parents drawn from scores

/// RngKey::copy of a parent's copy. A second growth with the same seed starts above all numbers of the first, so that
/// its children get noise of their own and not that of their elder siblings.
constexpr uint32_t stream_copy(int64_t experts_before, uint32_t copy) {
  return static_cast<uint32_t>(experts_before) + copy;
}

}  // namespace coppice::upcycle
