#pragma once

// AMX's tiles in plain C++, so that the kernels on tiles are tested on any processor with AVX-512.

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>

namespace coppice::kernels::cpu {

class EmulatedTiles {
 public:
  EmulatedTiles() { std::memset(tile_, 0xff, sizeof(tile_)); }

  template <int kTile>
  void zero() {
    std::memset(tile_[kTile], 0, sizeof(tile_[kTile]));
  }
  template <int kTile>
  void load(const uint32_t* from, int64_t step) {
    for (int64_t r = 0; r < 16; ++r) std::memcpy(tile_[kTile][r], from + r * step, sizeof(tile_[kTile][r]));
  }
  template <int kSum, int kLeft, int kRight>
  void multiply() {
    for (int r = 0; r < 16; ++r) {
      for (int n = 0; n < 16; ++n) {
        float sum;
        std::memcpy(&sum, &tile_[kSum][r][n], sizeof(sum));
        for (int word = 0; word < 16; ++word) {
          for (int half = 0; half < 2; ++half) sum += bf16(kLeft, r, word, half) * bf16(kRight, word, n, half);
        }
        std::memcpy(&tile_[kSum][r][n], &sum, sizeof(sum));
      }
    }
  }
  template <int kTile>
  void store(float* to, int64_t step) {
    for (int64_t r = 0; r < 16; ++r) std::memcpy(to + r * step, tile_[kTile][r], sizeof(tile_[kTile][r]));
  }

 private:
  float bf16(int tile, int row, int word, int half) const {
    return c10::detail::f32_from_bits(static_cast<uint16_t>(tile_[tile][row][word] >> (16 * half)));
  }

  uint32_t tile_[8][16][16];
};

}  // namespace coppice::kernels::cpu
