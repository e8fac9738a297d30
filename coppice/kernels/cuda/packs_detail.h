#pragma once

// Numbers of the pieces: neighbours that are read and written at once, widened to f32 and rounded once.

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "coppice/io/dtype.h"
#include "coppice/kernels/cuda/sorted_rows_detail.h"

namespace coppice::kernels::cuda {

inline constexpr int kRowLanes = 128;

/// Sums kRowLanes numbers; if many threads call it, the caller synchronises them between two steps.
COPPICE_ANYWHERE inline void add_upper_half(float* lanes, int lane, int half) {
  if (lane < half) lanes[lane] += lanes[lane + half];
}

COPPICE_ANYWHERE inline float widened(float value) { return value; }
COPPICE_ANYWHERE inline float widened(Bf16 value) { return io::f32_from_bf16(value.bits); }

COPPICE_ANYWHERE inline void narrow_to(float& to, float value) { to = value; }
COPPICE_ANYWHERE inline void narrow_to(Bf16& to, float value) { to.bits = io::bf16_from_f32(value); }

/// `kCount` neighbours that are copied at once.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];

  COPPICE_ANYWHERE static Pack load(const T* from) { return *reinterpret_cast<const Pack*>(from); }
  COPPICE_ANYWHERE static Pack zeros() {
    Pack out;
    for (T& v : out.values) narrow_to(v, 0.0f);
    return out;
  }
  COPPICE_ANYWHERE void store(T* to) const { *reinterpret_cast<Pack*>(to) = *this; }
};

/// Calls f with the size of packs and their number per row: 16 bytes if rows and pointers allow it, else one number.
template <class T, class F>
void with_pack(int64_t dim, std::initializer_list<const T*> rows, const F& f) {
  constexpr int kWide = 16 / sizeof(T);
  bool aligned = dim % kWide == 0;
  for (const T* row : rows) aligned = aligned && reinterpret_cast<uintptr_t>(row) % 16 == 0;
  if (aligned) {
    f(std::integral_constant<int, kWide>{}, dim / kWide);
  } else {
    f(std::integral_constant<int, 1>{}, dim);
  }
}

}  // namespace coppice::kernels::cuda
