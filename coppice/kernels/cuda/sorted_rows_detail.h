#pragma once

// The work of the MoE layer between its GEMMs if pairs are sorted on the device: the sort, gathers, the activation and
// sums. Each consists of many small pieces that do not communicate. `Launch` runs the pieces: on a GPU
// (sorted_rows.cu), or one after the other on the host (in tests). No ATen here, because nvcc compiles this file. T
// tokens, E experts, K choices per token, D model dimension, F expert width, G = 2F, P rows.

#include <cstdint>

#include "coppice/kernels/pair_order_detail.h"

namespace coppice::kernels::cuda {

using detail::PairOrder;

struct Bf16 {
  uint16_t bits;
};

/// Each expert's rows are padded to a multiple of 16, at least 16: the grouped GEMM needs 16-byte alignment and leaves
/// the weight gradient of an empty group unwritten.
inline constexpr int64_t kRowQuantum = 16;
inline constexpr int64_t kChunkPairs = 512;  ///< pairs per piece of the sort

/// P, enough for any choice of experts, so that the host need not know the choice.
inline int64_t most_rows(int64_t pairs, int64_t experts) {
  return (pairs + kRowQuantum - 1) / kRowQuantum * kRowQuantum + experts * kRowQuantum;
}
inline int64_t num_chunks(int64_t pairs) { return (pairs + kChunkPairs - 1) / kChunkPairs; }

/// Dtypes   T is float or Bf16; computed in f32 and rounded once.
template <class Launch, class T>
class SortedRows {
 public:
  /// Fills the order from its `index` by a counting sort, the same for any number of threads; each expert's first row
  /// is a multiple of kRowQuantum.
  ///
  /// Shapes   chunk_count: scratch of num_chunks * E; order.rows: most_rows.
  SortedRows(const Launch& launch, const PairOrder& order, int32_t* chunk_count);

  /// Sets row i of to_PD to the row of its token; rows of padding become zero.
  void gather(const T* from_TD, int64_t dim, T* to_PD) const;
  /// active_PF = silu(gate) * up of hidden_PG (gate first).
  void activate(const T* hidden_PG, int64_t width, T* active_PF) const;

  struct Activated {
    const T* hidden_PG;
    const float* gate_TK;
    T* active_PF;         ///< in: gradient of the activation A without its gate; out: gate * A
    T* grad_hidden_PG;    ///< out
    float* grad_gate_TK;  ///< out: inner product of A and its gradient
  };
  void activate_backward(const Activated& io, int64_t width) const;
  /// out_t = sum over k of weight_tk * row_tk in the order of k; weights of 1 if `weight_TK` is null.
  void combine(const T* rows_PD, const float* weight_TK, int64_t dim, T* out_TD) const;

 private:
  Launch launch_;
  PairOrder order_;
};

/// A CUDA stream; sorted_rows.cu.
struct OnDevice {
  void* stream;

  template <class Piece>
  void each(int64_t count, const Piece& piece) const;
  template <class Piece>
  void each_pack(int64_t rows, int64_t packs, const Piece& piece) const;
  template <class Piece>
  void each_row(int64_t rows, const Piece& piece) const;
};
extern template class SortedRows<OnDevice, float>;
extern template class SortedRows<OnDevice, Bf16>;

}  // namespace coppice::kernels::cuda
