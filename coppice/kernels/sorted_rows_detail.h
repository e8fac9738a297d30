#pragma once

// The work of the MoE layer between its GEMMs if pairs are sorted on the device: the sort, gathers, the activation and
// sums. Each consists of many small pieces that do not communicate. `Launch` runs the pieces: on a GPU
// (sorted_rows.cu), or one after the other on the host (in tests). No ATen here, because nvcc compiles this file. T
// tokens, E experts, K choices per token, D model dimension, F expert width, G = 2F, P rows.

#include <cstdint>

namespace coppice::kernels::detail {

struct Bf16 {
  uint16_t bits;
};

/// Each expert's rows are padded to a multiple of 16, at least 16: the grouped GEMM needs 16-byte alignment and leaves
/// the weight gradient of an empty group unwritten.
inline constexpr int64_t kRowQuantum = 16;
inline constexpr int64_t kChunkPairs = 512;  ///< pairs per piece of the sort

/// The (token, slot) pairs of one MoE layer as rows: expert by expert, and in rising order of pairs for each expert.
/// All but `index` is filled by SortedRows.
struct PairTables {
  int64_t tokens, top_k, experts;
  const int64_t* index;  ///< [T * K]
  int32_t* first_row;    ///< [E + 1]; multiples of kRowQuantum. rows after the last one are unused
  int32_t* pair_of_row;  ///< [P]; token * K + slot, or -1 for a row of padding
  int32_t* row_of_pair;  ///< [T * K]
  int32_t* chunk_count;  ///< [chunks * E], scratch

  int64_t pairs() const { return tokens * top_k; }
  int64_t chunks() const { return (pairs() + kChunkPairs - 1) / kChunkPairs; }
  /// P, enough for any choice of experts, so that the host need not know the choice.
  int64_t rows() const { return (pairs() + kRowQuantum - 1) / kRowQuantum * kRowQuantum + experts * kRowQuantum; }
};

/// Dtypes   T is float or Bf16; computed in f32 and rounded once.
template <class Launch, class T>
class SortedRows {
 public:
  /// Fills the tables by a counting sort; the result does not depend on threads.
  SortedRows(const Launch& launch, const PairTables& tables);

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
  PairTables tables_;
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

}  // namespace coppice::kernels::detail
