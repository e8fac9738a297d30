#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace coppice::detail {

/// Sets out[4 i + w] from word w of block `first` + i: a normal number (two words make two, by Box-Muller) or a number
/// of U(-1, 1). Uses the widest instructions of this processor; the bits equal those of the scalar code.
void fill_normal_blocks(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                        size_t blocks, float* out);
void fill_uniform_blocks(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                         size_t blocks, float* out);

/// U(-1, 1) in steps of 2^-23, symmetric, never 0.
inline float signed_uniform(uint32_t bits) {
  return (static_cast<float>(static_cast<int32_t>(bits) >> 8) + 0.5F) * 0x1p-23F;
}

/// The instruction sets that this build has code for and this processor supports. For tests that all give the same
/// bits.
std::vector<int64_t> simd_targets();
/// From now on all fills use this instruction set; 0: the best one again. Not to be called while another thread fills.
void use_simd_target(int64_t target);

}  // namespace coppice::detail
