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

}  // namespace coppice::upcycle
