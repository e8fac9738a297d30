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

inline int64_t num_blocks(int64_t rows) { return rows / kRowQuantum; }
/// Numbers of scratch that the sort wants.
inline int64_t sort_scratch(const PairOrder& order) { return (num_chunks(order.pairs()) + 1) * order.experts; }

/// Dtypes   T is float or Bf16; computed in f32 and rounded once. Biases may be null.
template <class Launch, class T>
class SortedRows {
 public:
  /// For an order that is filled in, or will be by `sort`.
  SortedRows(const Launch& launch, const PairOrder& order) : launch_(launch), order_(order) {}

  /// Fills the order from its `index` by a counting sort, the same for any number of threads; each expert's first row
  /// is a multiple of kRowQuantum.
  ///
  /// Shapes   scratch: sort_scratch; order.rows: most_rows.
  void sort(int32_t* scratch) const;

  /// Sets row i of to_PD to the row of its token; rows of padding become zero.
  void gather(const T* from_TD, int64_t dim, T* to_PD) const;

  /// Pre-activations (gate first), to which the expert's bias is still to be added.
  struct Hidden {
    const T *values_PG, *bias_EG;
    int64_t width;
    bool is_clamped;  ///< ExpertActivation::kClampedSwiglu
  };
  void activate(const Hidden& hidden, T* active_PF) const;

  struct Activated {
    const float* gate_TK;
    T* active_PF;         ///< in: gradient of the activation A without its gate; out: gate * A
    T* grad_hidden_PG;    ///< out
    float* grad_gate_TK;  ///< out: inner product of A and its gradient
  };
  void activate_backward(const Hidden& hidden, const Activated& io) const;
  /// Adds what the bias of the outputs adds to the gradients of the gates.
  void gates_through_bias(const T* grad_TD, const T* bias_ED, int64_t dim, float* grad_gate_TK) const;
  /// The sum of each expert's rows, times their gates if given: the gradient of a bias.
  ///
  /// Shapes   scratch: num_blocks(P) * N.
  void sum_by_expert(const T* rows_PN, const float* gate_TK, int64_t columns, float* scratch, T* out_EN) const;

  /// Outputs of the experts, to which their bias is still to be added.
  struct Outputs {
    const T *values_PD, *bias_ED;
    int64_t dim;
  };
  /// out_t = sum over k of weight_tk * row_tk in the order of k; weights of 1 if `weight_TK` is null.
  void combine(const Outputs& rows, const float* weight_TK, T* out_TD) const;
  /// The squared norm of each pair's output.
  void pair_squares(const Outputs& rows, float* square_TK) const;

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
