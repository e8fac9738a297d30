#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace coppice::detail {

/// out[4 i + w] = what word w of block `first` + i becomes: a normal (words pairwise, Box-Muller) or a number of
/// U(-1, 1). The widest instructions of this processor; the bits are those of the scalar code.
void fill_normal_blocks(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                        size_t blocks, float* out);
void fill_uniform_blocks(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                         size_t blocks, float* out);

/// U(-1, 1) in steps of 2^-23, symmetric, never 0.
inline float signed_uniform(uint32_t bits) {
  return (static_cast<float>(static_cast<int32_t>(bits) >> 8) + 0.5F) * 0x1p-23F;
}

/// Instruction sets that this build has code for and this processor runs. For tests: all give the same bits.
std::vector<int64_t> simd_targets();
/// All fills from now on use this one; 0 = the best again. Not while another thread fills.
void use_simd_target(int64_t target);

}  // namespace coppice::detail
