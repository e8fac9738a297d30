#pragma once

// What the variants of the MoE layer in words of 32 bits share: how tokens are gathered, the elementwise part of the
// backward pass, and how the work is divided. A variant is a struct (moe_avx512.cpp has one, moe_amx_detail.h another):
//   Element                    f32 or bf16
//   kStepPanels                panels of 16 tokens that are processed together
//   Forward, Backward          classes for one task; run(...) takes up to kStepPanels panels
//   gate_up_gradient, down_gradient   some rows of the gradient of one expert's weight
// Include it after everything else but the variant's own header.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "coppice/base/check.h"
#include "coppice/kernels/cpu/moe_rows_detail.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/cpu/words_avx512_detail.h"
#include "coppice/kernels/moe_detail.h"
#include "coppice/kernels/pair_order_detail.h"
#include "coppice/kernels/parallel.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

namespace coppice::kernels::cpu {
namespace {

using detail::KeptOrder;
using detail::MoeForward;
using detail::MoeGradients;
using detail::MoeInputs;

inline constexpr int64_t kTaskRows = 512;     ///< rows of one expert per task
inline constexpr int64_t kWeightBlock = 512;  ///< rows of a weight's gradient per task
inline constexpr int64_t kSlack = 32;         ///< elements after a tensor that a variant may read

struct Sizes {
  int64_t experts, dim, width, hidden;  // E, D, F, G = 2F

  explicit Sizes(const MoeInputs& in)
      : experts(in.w_down_EDF.size(0)), dim(in.x_TD.size(1)), width(in.w_down_EDF.size(2)), hidden(2 * width) {}
};

KeptOrder order_of(const MoeInputs& in) {
  return order_pairs(in, [](int64_t rows) { return (rows + kLanes - 1) / kLanes * kLanes; });
}

/// The source of a gathered row; null for padding.
template <class T>
const T* gathered(const PairOrder& order, int64_t row, const T* from_TD, int64_t dim) {
  const int64_t pair = order.pair_of_row[row];
  return pair < 0 ? nullptr : from_TD + pair / order.top_k * dim;
}

template <class T>
const Word* as_words(const T* values) {
  return reinterpret_cast<const Word*>(values);
}

/// Panels of the tokens of rows [row, row + 16 count), gathered.
template <class T>
void pack_tokens(const PairOrder& order, int64_t row, int64_t count, const T* from_TD, int64_t dim, Word* panels) {
  const int64_t words = dim / kPerWord<T>;
  for (int64_t j = 0; j < count; ++j) {
    pack_rows([&](int i) { return as_words(gathered(order, row + j * kLanes + i, from_TD, dim)); }, words,
              panels + j * words * kLanes);
  }
}

/// Results of the backward pass of the rows for the gradients of weights and inputs. For an expert with R rows from
/// `first` on: hidden [G][R] at first * G, active [F][R] (gate * A) at first * F; kSlack zeros behind each.
struct RowGradients {
  at::Tensor hidden_GP, active_FP, in_PD;
};

/// Rows [begin, begin + count) of the gradient of one expert's weight.
struct WeightRows {
  int64_t expert, begin, count;
};

/// The gates of 16 rows; 0 for padding.
inline __m512 gates_of_rows(const PairOrder& order, const float* gate_TK, int64_t row) {
  alignas(64) float gate[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    const int64_t pair = order.pair_of_row[row + i];
    gate[i] = pair < 0 ? 0.0f : gate_TK[pair];
  }
  return _mm512_load_ps(gate);
}

inline void put_gate_gradients(const PairOrder& order, int64_t row, __m512 dots, float* grad_TK) {
  alignas(64) float dot_of[kLanes];
  _mm512_store_ps(dot_of, dots);
  for (int64_t i = 0; i < kLanes; ++i) {
    const int64_t pair = order.pair_of_row[row + i];
    if (pair >= 0) grad_TK[pair] = dot_of[i];
  }
}

struct SwigluGradient {
  __m512 gate, up;  ///< gradients of the pre-activations
  __m512 active;    ///< the active unit times the pair's gate
};
/// Of one unit for 16 tokens: g and u its pre-activations, d the gradient of its output before the gate; adds to `dots`,
/// the gradient of the gates.
inline SwigluGradient swiglu_gradient(__m512 g, __m512 u, __m512 d, __m512 gate, __m512& dots) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 s = sigmoid(g), silu = _mm512_mul_ps(g, s), a = _mm512_mul_ps(silu, u);
  dots = _mm512_fmadd_ps(d, a, dots);
  const __m512 weighted = _mm512_mul_ps(d, gate);
  const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one));
  return {_mm512_mul_ps(_mm512_mul_ps(weighted, u), slope), _mm512_mul_ps(weighted, silu), _mm512_mul_ps(gate, a)};
}

/// Calls step(row, panels) for the rows of a task, `most` panels of 16 at a time.
template <class Step>
void for_each_step(const Tile& tile, int64_t most, Step step) {
  for (int64_t row = tile.row; row < tile.row + tile.rows; row += most * kLanes) {
    step(row, std::min(most, (tile.row + tile.rows - row) / kLanes));
  }
}

template <class V>
MoeForward words_forward(const MoeInputs& in) {
  using T = typename V::Element;
  const Sizes sizes(in);
  const KeptOrder kept = order_of(in);
  const PairOrder& order = kept.order;
  const auto tiles = cut_tiles(order, kTaskRows);
  MoeForward out{at::empty_like(in.x_TD), at::empty({order.rows, sizes.hidden}, in.x_TD.options())};
  const auto out_PD = at::empty({order.rows, sizes.dim}, in.x_TD.options());
  T* const hidden = out.hidden_PG.mutable_data_ptr<T>();
  T* const rows = out_PD.mutable_data_ptr<T>();
  parallel_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t i) {
    typename V::Forward step(in, order);
    for_each_step(tiles[i], V::kStepPanels,
                  [&](int64_t row, int64_t panels) { step.run(tiles[i].expert, row, panels, hidden, rows); });
  });
  combine<T>(order, rows, in.gate_TK.const_data_ptr<float>(), out.y_TD.mutable_data_ptr<T>(), in.x_TD.size(0),
             sizes.dim);
  if (in.with_pair_sq) out.pair_sq_TK = pair_squares<T>(order, rows, in.gate_TK, sizes.dim);
  out.order = kept.tables();
  return out;
}

template <class T>
at::Tensor with_slack(int64_t elements, const at::TensorOptions& options) {
  const auto tensor = at::empty({elements + kSlack}, options);
  std::fill_n(tensor.mutable_data_ptr<T>() + elements, kSlack, T{});
  return tensor;
}

/// The weights' gradients, in tasks of kWeightBlock rows.
template <class V>
void weight_gradients(const MoeInputs& in, const PairOrder& order, const RowGradients& rows,
                      const typename V::Element* grad_TD, const MoeGradients& out) {
  using T = typename V::Element;
  const Sizes sizes(in);
  const auto blocks = [](int64_t all) { return (all + kWeightBlock - 1) / kWeightBlock; };
  const int64_t gate_up_blocks = blocks(sizes.hidden), down_blocks = blocks(sizes.dim);
  parallel_tasks(sizes.experts * (gate_up_blocks + down_blocks), [&](int64_t task) {
    const int64_t expert = task / (gate_up_blocks + down_blocks), block = task % (gate_up_blocks + down_blocks);
    const bool is_down = block >= gate_up_blocks;
    const int64_t all = is_down ? sizes.dim : sizes.hidden, cols = is_down ? sizes.width : sizes.dim;
    const int64_t begin = (is_down ? block - gate_up_blocks : block) * kWeightBlock;
    const WeightRows part{expert, begin, std::min(kWeightBlock, all - begin)};
    const auto& weight = is_down ? out.w_down_EDF : out.w_gate_up_EGD;
    T* const to = weight.template mutable_data_ptr<T>() + (expert * all + begin) * cols;
    if (order.rows_of(expert) == 0) {
      std::fill_n(to, part.count * cols, T{});
    } else if (is_down) {
      V::down_gradient(in, order, rows, grad_TD, part, to);
    } else {
      V::gate_up_gradient(in, order, rows, part, to);
    }
  });
}

template <class V>
MoeGradients words_backward(const MoeInputs& in, const MoeForward& from, const at::Tensor& grad_TD) {
  using T = typename V::Element;
  const Sizes sizes(in);
  const KeptOrder kept = detail::order_from(in, from.order);
  const PairOrder& order = kept.order;
  COPPICE_CHECK(order.rows == from.hidden_PG.size(0));
  MoeGradients out{at::empty_like(in.x_TD), at::empty_like(in.w_gate_up_EGD), at::empty_like(in.w_down_EDF),
                   at::empty_like(in.gate_TK)};
  const auto options = in.x_TD.options();
  const RowGradients rows{with_slack<T>(sizes.hidden * order.rows, options),
                          with_slack<T>(sizes.width * order.rows, options),
                          at::empty({order.rows, sizes.dim}, options)};
  const T* const grad = grad_TD.const_data_ptr<T>();
  const auto tiles = cut_tiles(order, kTaskRows);
  parallel_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t i) {
    typename V::Backward step(in, order, tiles[i].expert);
    for_each_step(tiles[i], V::kStepPanels, [&](int64_t row, int64_t panels) {
      step.run(row, panels, grad, from.hidden_PG.const_data_ptr<T>(), rows, out.gate_TK.mutable_data_ptr<float>());
    });
  });
  weight_gradients<V>(in, order, rows, grad, out);
  combine<T>(order, rows.in_PD.template const_data_ptr<T>(), nullptr, out.x_TD.mutable_data_ptr<T>(), in.x_TD.size(0),
             sizes.dim);
  return out;
}

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options
