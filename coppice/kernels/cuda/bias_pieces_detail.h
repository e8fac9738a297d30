#pragma once

// The pieces for the gradients of biases, and of gates through them.

#include "coppice/kernels/cuda/packs_detail.h"

namespace coppice::kernels::cuda {

/// Adds the inner product of the pair's output gradient and its expert's bias to the gradient of its gate.
template <class T, int kCount>
struct GatesThroughBias {
  PairOrder order;
  const T *grad_TD, *bias_ED;
  float* grad_gate_TK;
  int64_t packs;
  COPPICE_ANYWHERE float operator()(int64_t pair, int lane) const {
    using P = Pack<T, kCount>;
    float sum = 0;
    for (int64_t at = lane; at < packs; at += kRowLanes) {
      const P grad = P::load(grad_TD + (pair / order.top_k * packs + at) * kCount);
      const P bias = P::load(bias_ED + (order.index[pair] * packs + at) * kCount);
      for (int i = 0; i < kCount; ++i) sum += widened(grad.values[i]) * widened(bias.values[i]);
    }
    return sum;
  }
  COPPICE_ANYWHERE void finish(int64_t pair, float sum) const { grad_gate_TK[pair] += sum; }
};

/// The sum of the kRowQuantum rows of one block, which are one expert's, times their gates if given.
template <class T, int kCount>
struct SumOfBlock {
  PairOrder order;
  const T* rows_PN;
  const float* gate_TK;
  float* sum_BN;
  int64_t packs;
  COPPICE_ANYWHERE void operator()(int64_t block, int64_t at) const {
    using P = Pack<T, kCount>;
    float sum[kCount] = {};
    for (int64_t row = block * kRowQuantum; row < (block + 1) * kRowQuantum; ++row) {
      const int64_t pair = order.pair_of_row[row];
      if (pair < 0) continue;
      const P values = P::load(rows_PN + (row * packs + at) * kCount);
      const float weight = gate_TK ? gate_TK[pair] : 1.0f;
      for (int i = 0; i < kCount; ++i) sum[i] += weight * widened(values.values[i]);
    }
    float* const to = sum_BN + (block * packs + at) * kCount;
    for (int i = 0; i < kCount; ++i) to[i] = sum[i];
  }
};

/// One number of an expert's sum over its blocks, piece expert * N + column.
template <class T>
struct SumOfExpert {
  PairOrder order;
  const float* sum_BN;
  T* out_EN;
  int64_t columns;
  COPPICE_ANYWHERE void operator()(int64_t piece) const {
    const int64_t expert = piece / columns, column = piece % columns;
    const int64_t end = order.first_row[expert + 1] / kRowQuantum;
    float sum = 0;
    for (int64_t block = order.first_row[expert] / kRowQuantum; block < end; ++block) {
      sum += sum_BN[block * columns + column];
    }
    narrow_to(out_EN[piece], sum);
  }
};

}  // namespace coppice::kernels::cuda
