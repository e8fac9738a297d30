#pragma once

// Products of bf16 matrices on tiles of 16 rows of 64 bytes, as AMX has them. A *word* is two neighbouring bf16 along the
// summed dimension. A tile of the left matrix holds 16 rows of 16 words, as they lie in memory; a tile of the right
// matrix is 16 words of a panel [words][16 lanes]. Sums are in f32.
//
// The code is a template over the unit that multiplies: AmxTiles is the processor's, and the tests have one in plain C++,
// so that everything but the eight instructions is tested on any processor. For .cpp files only, as words_avx512_detail.h.

#include <immintrin.h>

#include "coppice/kernels/cpu/words_avx512_detail.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")

namespace coppice::kernels::cpu {
namespace {

inline constexpr int64_t kWordBytes = 4;   ///< of f32 too
inline constexpr int64_t kTileWords = 16;  ///< of a row of a tile
inline constexpr int64_t kTileRows = 16;   ///< of the left matrix, and of a product

/// The processor's tile registers; while one lives, they belong to this thread. The process has asked Linux for
/// them (processor.cpp). The intrinsics of g++ take a tile's number as a literal, not as an argument of a template.
class AmxTiles {
 public:
  AmxTiles() {
    struct alignas(64) Configuration {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } all;
    static_assert(sizeof(Configuration) == 64);
    for (int t = 0; t < 8; ++t) {
      all.row_bytes[t] = kTileWords * kWordBytes;
      all.rows[t] = kTileRows;
    }
    asm volatile("ldtilecfg %0" : : "m"(all));  // g++ 12's intrinsic says that it reads 8 bytes of the 64
  }
  ~AmxTiles() { _tile_release(); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

  template <int kTile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  /// Rows `step` words apart.
  template <int kTile>
  void load(const Word* from, int64_t step) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(step * kWordBytes), "i"(kTile) : "memory");
  }
  /// kSum += kLeft * kRight.
  template <int kSum, int kLeft, int kRight>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kLeft), "i"(kRight));
  }
  /// Rows `step` floats apart.
  template <int kTile>
  void store(float* to, int64_t step) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(step * kWordBytes), "i"(kTile) : "memory");
  }
};

/// Sixteen rows of a left matrix: tile t lies at data + t * tile_step, its rows `row_step` words apart.
struct TileRows {
  const Word* data;
  int64_t row_step, tile_step;

  /// As they lie in memory, `words` apart.
  static TileRows in_memory(const Word* row, int64_t words) { return {row, words, kTileWords}; }
  /// Block `block` of 16 rows of a matrix that pack_columns() made.
  static TileRows packed(const Word* matrix, int64_t block, int64_t words) {
    return {matrix + block * kTileRows * words, kTileWords, kTileRows * kTileWords};
  }
};

/// out [2][16][count][16] = twice 16 rows times one panel or two that are `panel_step` words apart. `words` is a multiple
/// of 16.
template <class Tiles>
void multiply_tiles(Tiles& tiles, TileRows first, TileRows second, const Word* panels, int64_t panel_step,
                    int64_t words, int64_t count, float* out) {
  const int64_t step = count * kLanes;
  tiles.template zero<0>();
  tiles.template zero<2>();
  if (count == 1) {
    for (int64_t w = 0; w < words; w += kTileWords) {
      tiles.template load<6>(panels + w * kLanes, kLanes);
      tiles.template load<4>(first.data, first.row_step);
      tiles.template multiply<0, 4, 6>();
      tiles.template load<5>(second.data, second.row_step);
      tiles.template multiply<2, 5, 6>();
      first.data += first.tile_step;
      second.data += second.tile_step;
    }
  } else {
    tiles.template zero<1>();
    tiles.template zero<3>();
    for (int64_t w = 0; w < words; w += kTileWords) {
      tiles.template load<4>(first.data, first.row_step);
      tiles.template load<6>(panels + w * kLanes, kLanes);
      tiles.template multiply<0, 4, 6>();
      tiles.template load<7>(panels + panel_step + w * kLanes, kLanes);
      tiles.template multiply<1, 4, 7>();
      tiles.template load<5>(second.data, second.row_step);
      tiles.template multiply<2, 5, 6>();
      tiles.template multiply<3, 5, 7>();
      first.data += first.tile_step;
      second.data += second.tile_step;
    }
    tiles.template store<1>(out + kLanes, step);
    tiles.template store<3>(out + kTileRows * step + kLanes, step);
  }
  tiles.template store<0>(out, step);
  tiles.template store<2>(out + kTileRows * step, step);
}

/// Where the words of columns go: column c + i, words from w on, at out + c * words + w * word_step + i * col_step, for c
/// and w that are multiples of 16.
struct ColumnLayout {
  int64_t word_step, col_step;

  static ColumnLayout rows(int64_t words) { return {1, words}; }
  static ColumnLayout tiles() { return {kTileRows, kTileWords}; }  ///< for TileRows::packed
};

/// Words along the rows of a matrix of bf16 whose row r is row(r), so that columns become rows. `cols` and `words` are
/// multiples of 16; a null row is zeros.
template <class Row>
void pack_columns(const Row& row, int64_t words, int64_t cols, ColumnLayout layout, Word* out) {
  for (int64_t w = 0; w < words; w += kLanes) {
    const at::BFloat16* from[2 * kLanes];
    for (int64_t i = 0; i < 2 * kLanes; ++i) from[i] = row(2 * w + i);
    for (int64_t c = 0; c < cols; c += kLanes) {
      const auto at = [&](int64_t i) { return from[i] == nullptr ? nullptr : from[i] + c; };
      __m512i r[16];
      for (int64_t i = 0; i < kLanes; ++i) r[i] = pair_words(at(2 * i), at(2 * i + 1));
      transpose(r);
      Word* const to = out + c * words + w * layout.word_step;
      for (int64_t i = 0; i < kLanes; ++i) _mm512_storeu_si512(to + i * layout.col_step, r[i]);
    }
  }
}

/// out [2][16][count][16] of multiply_tiles() as words of bf16 pairs of neighbouring rows, with rows and lanes exchanged:
/// the 32 numbers of each lane go to out(lane), lane < count * 16.
template <class Out>
void put_lanes(const float* block, int64_t count, const Out& out) {
  const int64_t step = count * kLanes;
  for (int64_t j = 0; j < count; ++j) {
    __m512i r[16];
    for (int64_t i = 0; i < kLanes; ++i) {
      const float* const pair = block + 2 * i * step + j * kLanes;
      r[i] = interleaved(bf16_pair(_mm512_load_ps(pair), _mm512_load_ps(pair + step)));
    }
    transpose(r);
    for (int64_t i = 0; i < kLanes; ++i) _mm512_storeu_si512(out(j * kLanes + i), r[i]);
  }
}

/// The unit of attention_words_detail.h.
template <class Tiles>
class TileUnit {
 public:
  using Element = at::BFloat16;
  static constexpr int64_t kRows = 2 * kTileRows;

  void multiply(Words left, const Word* panels, int64_t words, float* out) {
    const Word* const second = left.row(kTileRows).data;
    multiply_tiles(tiles_, TileRows::in_memory(left.data, left.row_step), TileRows::in_memory(second, left.row_step),
                   panels, words * kLanes, words, 2, out);
  }
  template <class Row>
  static void turn(const Row& row, int64_t rows, int64_t cols, Word* out) {
    pack_columns(row, rows / 2, cols, ColumnLayout::rows(rows / 2), out);
  }
  static Words turned(const Word* data, int64_t first, int64_t words, int64_t) { return {data + first, words, 1}; }

 private:
  Tiles tiles_;
};

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options
