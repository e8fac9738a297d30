#pragma once

// What the MoE layer does between its GEMMs where pairs are sorted on the device that computes: an order, gathers, the
// activation and sums, each as many small pieces that do not communicate. `Launch` runs the pieces: on a GPU
// (sorted_rows.cu), or one after the other on the host (in tests). No ATen here: nvcc compiles what follows from it.
// T tokens, E experts, K choices per token, D model dimension, F expert width, G = 2F, P rows.

#include <cstdint>

namespace coppice::kernels::detail {

struct Bf16 {
  uint16_t bits;
};

/// Rows of an expert are filled up to a multiple of this, and there is at least that many: libtorch's grouped GEMM wants
/// 16 bytes along every dimension, and gives nothing to a group of no rows.
inline constexpr int64_t kRowQuantum = 16;
inline constexpr int64_t kChunkPairs = 512;  ///< that one piece of the sort goes through

/// The (token, slot) pairs of one MoE layer as rows, expert by expert, pairs in rising order within one. All but `index`
/// is filled by SortedRows.
struct PairTables {
  int64_t tokens, top_k, experts;
  const int64_t* index;  ///< [T * K]
  int32_t* first_row;    ///< [E + 1]; multiples of kRowQuantum. Rows from the last on belong to nobody
  int32_t* pair_of_row;  ///< [P]; token * K + slot, or -1 for a row of padding
  int32_t* row_of_pair;  ///< [T * K]
  int32_t* chunk_count;  ///< [chunks * E], scratch

  int64_t pairs() const { return tokens * top_k; }
  int64_t chunks() const { return (pairs() + kChunkPairs - 1) / kChunkPairs; }
  /// P: room for any choice of experts, so that the host need not know it.
  int64_t rows() const { return (pairs() + kRowQuantum - 1) / kRowQuantum * kRowQuantum + experts * kRowQuantum; }
};

/// Dtypes   T is float or Bf16; computed in f32 and rounded once.
template <class Launch, class T>
class SortedRows {
 public:
  /// Fills the tables by a counting sort, the same for any number of threads.
  SortedRows(const Launch& launch, const PairTables& tables);

  /// to_PD: row i is the one of its token; rows of padding are zero.
  void gather(const T* from_TD, int64_t dim, T* to_PD) const;
  /// active_PF = silu(gate) * up of hidden_PG (gate first).
  void activate(const T* hidden_PG, int64_t width, T* active_PF) const;

  struct Activated {
    const T* hidden_PG;
    const float* gate_TK;
    T* active_PF;         ///< in: gradient of the ungated output's activation A; out: gate * A
    T* grad_hidden_PG;    ///< out
    float* grad_gate_TK;  ///< out: inner product of A and its gradient
  };
  void activate_backward(const Activated& io, int64_t width) const;
  /// out_t = sum over k of weight_tk * row_tk in the order of k; weights of 1 where `weight_TK` is null.
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
