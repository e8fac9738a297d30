#pragma once

#include <cstdint>

namespace coppice::methods {

// What a random stream is used for (RngKey::purpose). These numbers determine the bytes of expanded models: never
// renumber.
inline constexpr uint32_t kNoise = 1;         ///< added to a parent's values
inline constexpr uint32_t kPermutation = 2;   ///< order of an expert's units
inline constexpr uint32_t kDroppedUnits = 3;  ///< which units are redrawn
inline constexpr uint32_t kRedraw = 4;        ///< their new values
inline constexpr uint32_t kSelection = 5;     ///< parents drawn from scores
inline constexpr uint32_t kPartner = 6;       ///< which other expert a child mixes with
inline constexpr uint32_t kColumns = 7;       ///< which columns are redrawn
inline constexpr uint32_t kSingularValues = 8;
inline constexpr uint32_t kLeftVectors = 9;
inline constexpr uint32_t kRightVectors = 10;
inline constexpr uint32_t kSmallValues = 11;  ///< singular values drawn anew
inline constexpr uint32_t kDictionary = 12;
inline constexpr uint32_t kMixed = 13;        ///< which singular pairs or rows of codes come from the partner
inline constexpr uint32_t kNewRow = 14;       ///< a router row from nothing
inline constexpr uint32_t kCalibration = 15;  ///< router logits to measure gates with

/// RngKey::copy of a parent's copy. A second expansion with the same seed uses numbers above all of the first, so that
/// its children get different noise than the children of the first.
constexpr uint32_t stream_copy(int64_t experts_before, uint32_t copy) {
  return static_cast<uint32_t>(experts_before) + copy;
}

}  // namespace coppice::methods
