#pragma once

// SortedRows for the file that has a `Launch`:
//   each(count, piece)            piece(i) for every i < count
//   each_pack(rows, packs, piece) piece(row, pack) for every row < rows and pack < packs
//   each_row(rows, piece)         piece.finish(row, sum over lanes of piece(row, lane)), lanes summed as a tree

#include "coppice/kernels/cuda/bias_pieces_detail.h"
#include "coppice/kernels/cuda/order_pieces_detail.h"
#include "coppice/kernels/cuda/row_pieces_detail.h"

namespace coppice::kernels::cuda {

/// Calls f with the activation's type.
template <class F>
void with_form(bool is_clamped, const F& f) {
  if (is_clamped) {
    f(detail::ClampedSwiglu{});
  } else {
    f(detail::Swiglu{});
  }
}

template <class Launch, class T>
void SortedRows<Launch, T>::sort(int32_t* scratch) const {
  const int64_t chunks = num_chunks(order_.pairs());
  launch_.each(order_.rows, NoPairs{order_});
  launch_.each(chunks * order_.experts, CountPairs{order_, scratch});
  launch_.each(order_.experts, SumChunks{order_, scratch, chunks});
  launch_.each(order_.experts + 1, PlaceExperts{order_, scratch + chunks * order_.experts});
  launch_.each(chunks * order_.experts, PlacePairs{order_, scratch});
}

template <class Launch, class T>
void SortedRows<Launch, T>::gather(const T* from_TD, int64_t dim, T* to_PD) const {
  with_pack<T>(dim, {from_TD, to_PD}, [&](auto count, int64_t packs) {
    launch_.each_pack(order_.rows, packs, GatherRows<T, count>{order_, from_TD, to_PD, packs});
  });
}

template <class Launch, class T>
void SortedRows<Launch, T>::activate(const Hidden& hidden, T* active_PF) const {
  with_pack<T>(hidden.width, {hidden.values_PG, hidden.bias_EG, active_PF}, [&](auto count, int64_t packs) {
    const BiasedHidden<T, count> biased{order_, hidden.values_PG, hidden.bias_EG, packs};
    with_form(hidden.is_clamped, [&]<class Form>(Form) {
      launch_.each_pack(order_.rows, packs, ActivateRows<T, count, Form>{biased, active_PF});
    });
  });
}

template <class Launch, class T>
void SortedRows<Launch, T>::activate_backward(const Hidden& hidden, const Activated& io) const {
  with_pack<T>(hidden.width, {hidden.values_PG, hidden.bias_EG, io.active_PF, io.grad_hidden_PG},
               [&](auto count, int64_t packs) {
                 const BiasedHidden<T, count> biased{order_, hidden.values_PG, hidden.bias_EG, packs};
                 with_form(hidden.is_clamped, [&]<class Form>(Form) {
                   launch_.each_row(order_.rows,
                                    ActivateRowsBackward<T, count, Form>{biased, io.gate_TK, io.active_PF,
                                                                         io.grad_hidden_PG, io.grad_gate_TK});
                 });
               });
}

template <class Launch, class T>
void SortedRows<Launch, T>::gates_through_bias(const T* grad_TD, const T* bias_ED, int64_t dim,
                                               float* grad_gate_TK) const {
  with_pack<T>(dim, {grad_TD, bias_ED}, [&](auto count, int64_t packs) {
    launch_.each_row(order_.pairs(), GatesThroughBias<T, count>{order_, grad_TD, bias_ED, grad_gate_TK, packs});
  });
}

template <class Launch, class T>
void SortedRows<Launch, T>::sum_by_expert(const T* rows_PN, const float* gate_TK, int64_t columns, float* scratch,
                                          T* out_EN) const {
  with_pack<T>(columns, {rows_PN}, [&](auto count, int64_t packs) {
    launch_.each_pack(num_blocks(order_.rows), packs, SumOfBlock<T, count>{order_, rows_PN, gate_TK, scratch, packs});
  });
  launch_.each(order_.experts * columns, SumOfExpert<T>{order_, scratch, out_EN, columns});
}

template <class Launch, class T>
void SortedRows<Launch, T>::combine(const Outputs& rows, const float* weight_TK, T* out_TD) const {
  with_pack<T>(rows.dim, {rows.values_PD, rows.bias_ED, out_TD}, [&](auto count, int64_t packs) {
    const BiasedOutputs<T, count> outputs{order_, rows.values_PD, rows.bias_ED, packs};
    launch_.each_pack(order_.tokens, packs, SumOfChoices<T, count>{outputs, weight_TK, out_TD});
  });
}

template <class Launch, class T>
void SortedRows<Launch, T>::pair_squares(const Outputs& rows, float* square_TK) const {
  with_pack<T>(rows.dim, {rows.values_PD, rows.bias_ED}, [&](auto count, int64_t packs) {
    const BiasedOutputs<T, count> outputs{order_, rows.values_PD, rows.bias_ED, packs};
    launch_.each_row(order_.pairs(), PairSquares<T, count>{outputs, square_TK});
  });
}

}  // namespace coppice::kernels::cuda
