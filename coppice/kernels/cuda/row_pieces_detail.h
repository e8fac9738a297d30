#pragma once

// The pieces that work on rows; a `Form` is one of the activations of activation_detail.h.

#include "coppice/kernels/activation_detail.h"
#include "coppice/kernels/cuda/packs_detail.h"

namespace coppice::kernels::cuda {

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

/// Pre-activations of a row with their expert's bias.
template <class T, int kCount>
struct BiasedHidden {
  PairOrder order;
  const T *hidden_PG, *bias_EG;
  int64_t packs;  ///< of gate, and of up

  struct Both {
    float gate[kCount], up[kCount];
  };
  COPPICE_ANYWHERE Both load(int64_t row, int64_t pair, int64_t at) const {
    Both out = halves(hidden_PG, row, at);
    if (bias_EG) {
      const Both bias = halves(bias_EG, order.index[pair], at);
      for (int i = 0; i < kCount; ++i) {
        out.gate[i] += bias.gate[i];
        out.up[i] += bias.up[i];
      }
    }
    return out;
  }

 private:
  COPPICE_ANYWHERE Both halves(const T* from, int64_t row, int64_t at) const {
    using P = Pack<T, kCount>;
    const P gate = P::load(from + (2 * row * packs + at) * kCount);
    const P up = P::load(from + ((2 * row + 1) * packs + at) * kCount);
    Both out;
    for (int i = 0; i < kCount; ++i) {
      out.gate[i] = widened(gate.values[i]);
      out.up[i] = widened(up.values[i]);
    }
    return out;
  }
};

template <class T, int kCount, class Form>
struct ActivateRows {
  BiasedHidden<T, kCount> hidden;
  T* active_PF;
  COPPICE_ANYWHERE void operator()(int64_t row, int64_t at) const {
    using P = Pack<T, kCount>;
    P out = P::zeros();
    const int64_t pair = hidden.order.pair_of_row[row];
    if (pair >= 0) {
      const auto both = hidden.load(row, pair, at);
      for (int i = 0; i < kCount; ++i) narrow_to(out.values[i], Form::at(both.gate[i], both.up[i]).value);
    }
    out.store(active_PF + (row * hidden.packs + at) * kCount);
  }
};

template <class T, int kCount, class Form>
struct ActivateRowsBackward {
  BiasedHidden<T, kCount> hidden;
  const float* gate_TK;
  T *active_PF, *grad_hidden_PG;
  float* grad_gate_TK;

  /// The lane's part of a row and of its inner product.
  COPPICE_ANYWHERE float operator()(int64_t row, int lane) const {
    const int64_t pair = hidden.order.pair_of_row[row], packs = hidden.packs;
    float product = 0;
    for (int64_t at = lane; at < packs; at += kRowLanes) product += pair < 0 ? clear(row, at) : one(row, at, pair);
    return product;
  }
  COPPICE_ANYWHERE void finish(int64_t row, float product) const {
    const int64_t pair = hidden.order.pair_of_row[row];
    if (pair >= 0) grad_gate_TK[pair] = product;
  }

 private:
  using P = Pack<T, kCount>;
  COPPICE_ANYWHERE T* active(int64_t row, int64_t at) const { return active_PF + (row * hidden.packs + at) * kCount; }
  COPPICE_ANYWHERE void store(int64_t row, int64_t at, const P& grad_gate, const P& grad_up) const {
    grad_gate.store(grad_hidden_PG + (2 * row * hidden.packs + at) * kCount);
    grad_up.store(grad_hidden_PG + ((2 * row + 1) * hidden.packs + at) * kCount);
  }
  COPPICE_ANYWHERE float clear(int64_t row, int64_t at) const {
    P::zeros().store(active(row, at));
    store(row, at, P::zeros(), P::zeros());
    return 0;
  }
  COPPICE_ANYWHERE float one(int64_t row, int64_t at, int64_t pair) const {
    const auto both = hidden.load(row, pair, at);
    const P grad = P::load(active(row, at));
    const float weight = gate_TK[pair];
    P weighted_active, grad_gate, grad_up;
    float product = 0;
    for (int i = 0; i < kCount; ++i) {
      const detail::Activated a = Form::at(both.gate[i], both.up[i]);
      const float d = widened(grad.values[i]), weighted = d * weight;
      product += d * a.value;
      narrow_to(weighted_active.values[i], weight * a.value);
      narrow_to(grad_gate.values[i], weighted * a.by_gate);
      narrow_to(grad_up.values[i], weighted * a.by_up);
    }
    weighted_active.store(active(row, at));
    store(row, at, grad_gate, grad_up);
    return product;
  }
};

/// Outputs of pairs with their expert's bias.
template <class T, int kCount>
struct BiasedOutputs {
  PairOrder order;
  const T *rows_PD, *bias_ED;
  int64_t packs;

  struct Values {
    float of[kCount];
  };
  COPPICE_ANYWHERE Values load(int64_t pair, int64_t at) const {
    using P = Pack<T, kCount>;
    const P row = P::load(rows_PD + (order.row_of_pair[pair] * packs + at) * kCount);
    Values out;
    for (int i = 0; i < kCount; ++i) out.of[i] = widened(row.values[i]);
    if (bias_ED) {
      const P bias = P::load(bias_ED + (order.index[pair] * packs + at) * kCount);
      for (int i = 0; i < kCount; ++i) out.of[i] += widened(bias.values[i]);
    }
    return out;
  }
};

template <class T, int kCount>
struct SumOfChoices {
  BiasedOutputs<T, kCount> outputs;
  const float* weight_TK;
  T* out_TD;
  COPPICE_ANYWHERE void operator()(int64_t token, int64_t at) const {
    const int64_t top_k = outputs.order.top_k;
    float sum[kCount] = {};
    for (int64_t pair = token * top_k; pair < (token + 1) * top_k; ++pair) {
      const auto values = outputs.load(pair, at);
      const float weight = weight_TK ? weight_TK[pair] : 1.0f;
      for (int i = 0; i < kCount; ++i) sum[i] += weight * values.of[i];
    }
    Pack<T, kCount> out;
    for (int i = 0; i < kCount; ++i) narrow_to(out.values[i], sum[i]);
    out.store(out_TD + (token * outputs.packs + at) * kCount);
  }
};

/// The squared norm of a pair's output.
template <class T, int kCount>
struct PairSquares {
  BiasedOutputs<T, kCount> outputs;
  float* square_TK;
  COPPICE_ANYWHERE float operator()(int64_t pair, int lane) const {
    float sum = 0;
    for (int64_t at = lane; at < outputs.packs; at += kRowLanes) {
      const auto values = outputs.load(pair, at);
      for (int i = 0; i < kCount; ++i) sum += values.of[i] * values.of[i];
    }
    return sum;
  }
  COPPICE_ANYWHERE void finish(int64_t pair, float sum) const { square_TK[pair] = sum; }
};

}  // namespace coppice::kernels::cuda
