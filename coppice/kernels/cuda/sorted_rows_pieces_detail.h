#pragma once

// The pieces of sorted_rows_detail.h, for the file that has a `Launch`:
//   each(count, piece)            piece(i) for every i < count
//   each_pack(rows, packs, piece) piece(row, pack) for every row < rows and pack < packs
//   each_row(rows, piece)          piece.finish(row, sum over lanes of piece(row, lane)), lanes summed as a tree

#include <initializer_list>
#include <type_traits>

#include "coppice/base/check.h"
#include "coppice/io/dtype.h"
#include "coppice/kernels/activation_detail.h"
#include "coppice/kernels/cuda/sorted_rows_detail.h"

namespace coppice::kernels::cuda {

using detail::sigmoid_f32;

inline constexpr int kRowLanes = 128;

/// Sums kSumLanes numbers; if many threads call it, the caller synchronises them between two steps.
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

struct NoPairs {
  PairOrder order;
  COPPICE_ANYWHERE void operator()(int64_t row) const { order.pair_of_row[row] = -1; }
};

/// An expert index out of range is our bug: on a GPU the kernel is aborted.
COPPICE_ANYWHERE inline void check_expert(int64_t expert, int64_t experts) {
#ifdef __CUDA_ARCH__
  if (expert < 0 || expert >= experts) __trap();
#else
  COPPICE_CHECK(expert >= 0 && expert < experts, "expert ", expert);
#endif
}

/// Pairs of one expert in one chunk, piece chunk * E + expert.
struct CountPairs {
  PairOrder order;
  int32_t* chunk_count;
  COPPICE_ANYWHERE void operator()(int64_t piece) const {
    const int64_t chunk = piece / order.experts, expert = piece % order.experts, begin = chunk * kChunkPairs;
    const int64_t pairs = order.tokens * order.top_k, end = begin + kChunkPairs < pairs ? begin + kChunkPairs : pairs;
    int32_t count = 0;
    for (int64_t pair = begin; pair < end; ++pair) {
      if (expert == 0) check_expert(order.index[pair], order.experts);
      count += order.index[pair] == expert ? 1 : 0;
    }
    chunk_count[piece] = count;
  }
};

/// For one expert: replaces counts by the number of pairs in earlier chunks, and sets first_row[expert + 1] to the
/// number of all its pairs.
struct SumChunks {
  PairOrder order;
  int32_t* chunk_count;
  int64_t chunks;
  COPPICE_ANYWHERE void operator()(int64_t expert) const {
    int32_t sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int32_t count = chunk_count[chunk * order.experts + expert];
      chunk_count[chunk * order.experts + expert] = sum;
      sum += count;
    }
    order.first_row[expert + 1] = sum;
  }
};

/// Computes first rows from numbers of pairs; one piece.
struct PlaceExperts {
  PairOrder order;
  COPPICE_ANYWHERE void operator()(int64_t) const {
    constexpr auto kQuantum = static_cast<int32_t>(kRowQuantum);
    int32_t row = 0;
    order.first_row[0] = 0;
    for (int64_t expert = 0; expert < order.experts; ++expert) {
      const int32_t count = order.first_row[expert + 1];
      row += count == 0 ? kQuantum : (count + kQuantum - 1) / kQuantum * kQuantum;
      order.first_row[expert + 1] = row;
    }
  }
};

/// As CountPairs, with a row for each pair.
struct PlacePairs {
  PairOrder order;
  int32_t* chunk_count;
  COPPICE_ANYWHERE void operator()(int64_t piece) const {
    const int64_t chunk = piece / order.experts, expert = piece % order.experts, begin = chunk * kChunkPairs;
    const int64_t pairs = order.tokens * order.top_k, end = begin + kChunkPairs < pairs ? begin + kChunkPairs : pairs;
    int32_t row = order.first_row[expert] + chunk_count[piece];
    for (int64_t pair = begin; pair < end; ++pair) {
      if (order.index[pair] != expert) continue;
      order.pair_of_row[row] = static_cast<int32_t>(pair);
      order.row_of_pair[pair] = row++;
    }
  }
};

template <class T, int kCount>
struct GatherRows {
  PairOrder order;
  const T* from_TD;
  T* to_PD;
  int64_t packs;  ///< a row
  COPPICE_ANYWHERE void operator()(int64_t row, int64_t at) const {
    using P = Pack<T, kCount>;
    const int32_t pair = order.pair_of_row[row];
    const int64_t token = pair / static_cast<int32_t>(order.top_k);
    const P pack = pair < 0 ? P::zeros() : P::load(from_TD + (token * packs + at) * kCount);
    pack.store(to_PD + (row * packs + at) * kCount);
  }
};

template <class T, int kCount>
struct ActivateRows {
  PairOrder order;
  const T* hidden_PG;
  T* active_PF;
  int64_t packs;
  COPPICE_ANYWHERE void operator()(int64_t row, int64_t at) const {
    using P = Pack<T, kCount>;
    P out = P::zeros();
    if (order.pair_of_row[row] >= 0) {
      const P gate = P::load(hidden_PG + (2 * row * packs + at) * kCount);
      const P up = P::load(hidden_PG + ((2 * row + 1) * packs + at) * kCount);
      for (int i = 0; i < kCount; ++i) {
        const float g = widened(gate.values[i]);
        narrow_to(out.values[i], g * sigmoid_f32(g) * widened(up.values[i]));
      }
    }
    out.store(active_PF + (row * packs + at) * kCount);
  }
};

template <class T, int kCount>
struct SumOfChoices {
  PairOrder order;
  const T* rows_PD;
  const float* weight_TK;
  T* out_TD;
  int64_t packs;
  COPPICE_ANYWHERE void operator()(int64_t token, int64_t at) const {
    using P = Pack<T, kCount>;
    float sum[kCount] = {};
    for (int64_t pair = token * order.top_k; pair < (token + 1) * order.top_k; ++pair) {
      const P row = P::load(rows_PD + (order.row_of_pair[pair] * packs + at) * kCount);
      const float weight = weight_TK ? weight_TK[pair] : 1.0f;
      for (int i = 0; i < kCount; ++i) sum[i] += weight * widened(row.values[i]);
    }
    P out;
    for (int i = 0; i < kCount; ++i) narrow_to(out.values[i], sum[i]);
    out.store(out_TD + (token * packs + at) * kCount);
  }
};

template <class T, int kCount>
struct ActivateRowsBackward {
  PairOrder order;
  const T* hidden_PG;
  const float* gate_TK;
  T *active_PF, *grad_hidden_PG;
  float* grad_gate_TK;
  int64_t packs;

  /// The lane's part of a row and of its inner product.
  COPPICE_ANYWHERE float operator()(int64_t row, int lane) const {
    const int64_t pair = order.pair_of_row[row];
    float product = 0;
    for (int64_t at = lane; at < packs; at += kRowLanes) product += pair < 0 ? clear(row, at) : one(row, at, pair);
    return product;
  }
  COPPICE_ANYWHERE void finish(int64_t row, float product) const {
    const int64_t pair = order.pair_of_row[row];
    if (pair >= 0) grad_gate_TK[pair] = product;
  }

 private:
  using P = Pack<T, kCount>;
  COPPICE_ANYWHERE float clear(int64_t row, int64_t at) const {
    P::zeros().store(active_PF + (row * packs + at) * kCount);
    P::zeros().store(grad_hidden_PG + (2 * row * packs + at) * kCount);
    P::zeros().store(grad_hidden_PG + ((2 * row + 1) * packs + at) * kCount);
    return 0;
  }
  COPPICE_ANYWHERE float one(int64_t row, int64_t at, int64_t pair) const {
    T* const active = active_PF + (row * packs + at) * kCount;
    const int64_t gate_at = (2 * row * packs + at) * kCount, up_at = ((2 * row + 1) * packs + at) * kCount;
    const P gate = P::load(hidden_PG + gate_at), up = P::load(hidden_PG + up_at), grad = P::load(active);
    const float weight = gate_TK[pair];
    P weighted_active, grad_gate, grad_up;
    float product = 0;
    for (int i = 0; i < kCount; ++i) {
      const float g = widened(gate.values[i]), u = widened(up.values[i]), d = widened(grad.values[i]);
      const float s = sigmoid_f32(g), silu = g * s, weighted = d * weight;
      product += d * silu * u;
      narrow_to(weighted_active.values[i], weight * silu * u);
      narrow_to(grad_gate.values[i], weighted * u * s * (1.0f + g * (1.0f - s)));
      narrow_to(grad_up.values[i], weighted * silu);
    }
    weighted_active.store(active);
    grad_gate.store(grad_hidden_PG + gate_at);
    grad_up.store(grad_hidden_PG + up_at);
    return product;
  }
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

template <class Launch, class T>
SortedRows<Launch, T>::SortedRows(const Launch& launch, const PairOrder& order, int32_t* chunk_count)
    : launch_(launch), order_(order) {
  const int64_t chunks = num_chunks(order_.pairs());
  launch_.each(order_.rows, NoPairs{order_});
  launch_.each(chunks * order_.experts, CountPairs{order_, chunk_count});
  launch_.each(order_.experts, SumChunks{order_, chunk_count, chunks});
  launch_.each(1, PlaceExperts{order_});
  launch_.each(chunks * order_.experts, PlacePairs{order_, chunk_count});
}

template <class Launch, class T>
void SortedRows<Launch, T>::gather(const T* from_TD, int64_t dim, T* to_PD) const {
  with_pack<T>(dim, {from_TD, to_PD}, [&](auto count, int64_t packs) {
    launch_.each_pack(order_.rows, packs, GatherRows<T, count>{order_, from_TD, to_PD, packs});
  });
}

template <class Launch, class T>
void SortedRows<Launch, T>::activate(const T* hidden_PG, int64_t width, T* active_PF) const {
  with_pack<T>(width, {hidden_PG, active_PF}, [&](auto count, int64_t packs) {
    launch_.each_pack(order_.rows, packs, ActivateRows<T, count>{order_, hidden_PG, active_PF, packs});
  });
}

template <class Launch, class T>
void SortedRows<Launch, T>::activate_backward(const Activated& io, int64_t width) const {
  with_pack<T>(width, {io.hidden_PG, io.active_PF, io.grad_hidden_PG}, [&](auto count, int64_t packs) {
    launch_.each_row(order_.rows, ActivateRowsBackward<T, count>{order_, io.hidden_PG, io.gate_TK, io.active_PF,
                                                                 io.grad_hidden_PG, io.grad_gate_TK, packs});
  });
}

template <class Launch, class T>
void SortedRows<Launch, T>::combine(const T* rows_PD, const float* weight_TK, int64_t dim, T* out_TD) const {
  with_pack<T>(dim, {rows_PD, out_TD}, [&](auto count, int64_t packs) {
    launch_.each_pack(order_.tokens, packs, SumOfChoices<T, count>{order_, rows_PD, weight_TK, out_TD, packs});
  });
}

}  // namespace coppice::kernels::cuda
