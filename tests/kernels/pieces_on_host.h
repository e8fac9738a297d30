#pragma once

#include <cstdint>

#include "coppice/kernels/cuda/packs_detail.h"

namespace coppice::kernels::testing {

/// The pieces of a kernel, one after the other.
struct OnHost {
  template <class Piece>
  void each(int64_t count, const Piece& piece) const {
    for (int64_t i = 0; i < count; ++i) piece(i);
  }
  template <class Piece>
  void each_pack(int64_t rows, int64_t packs, const Piece& piece) const {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t pack = 0; pack < packs; ++pack) piece(row, pack);
    }
  }
  template <class Piece>
  void each_row(int64_t rows, const Piece& piece) const {
    for (int64_t row = 0; row < rows; ++row) {
      float lanes[cuda::kRowLanes];
      for (int lane = 0; lane < cuda::kRowLanes; ++lane) lanes[lane] = piece(row, lane);
      for (int half = cuda::kRowLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < cuda::kRowLanes; ++lane) cuda::add_upper_half(lanes, lane, half);
      }
      piece.finish(row, lanes[0]);
    }
  }
};

}  // namespace coppice::kernels::testing
