#pragma once

// The largest numbers that files and options may give, in one place: each is far above any model, and no sum or product
// that follows from them overflows.

#include <cstdint>

namespace coppice::families {

inline constexpr int64_t kMaxLayers = int64_t{1} << 16;        ///< the keys of random numbers count layers in 16 bits
inline constexpr int64_t kMaxExperts = int64_t{1} << 20;       ///< of a layer
inline constexpr int64_t kMaxExpertsInAll = int64_t{1} << 22;  ///< of all layers
inline constexpr int64_t kMaxCount = int64_t{1} << 53;         ///< of steps, samples and tokens

}  // namespace coppice::families
