#pragma once

// What the variants of the MoE layer in words of 32 bits share: how tokens are gathered, the elementwise part of the
// backward pass, and how the work is divided. A variant is a struct (moe_avx512.cpp has one, moe_amx_detail.h another):
//   Element                    f32 or bf16
//   step_panels(sizes)         panels of 16 tokens that are processed together
//   Forward, Backward          classes for one task; run(...) takes up to step_panels(sizes) panels
//   gate_up_gradient, down_gradient   some rows of the gradient of one expert's weight
// Include it after everything else but the variant's own header.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <optional>

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

/// The sources of rows [row, row + count).
template <class T>
std::vector<const T*> gathered(const PairOrder& order, int64_t row, int64_t count, const T* from_TD, int64_t dim) {
  std::vector<const T*> rows(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) rows[static_cast<size_t>(i)] = gathered(order, row + i, from_TD, dim);
  return rows;
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

/// Gradients of one expert's rows, R of them, for its weights' gradients: hidden [G][R], active [F][R] (gate * A); kSlack
/// zeros behind each.
template <class T>
struct ExpertRows {
  T *hidden, *active;
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
    const int64_t most = std::min(V::step_panels(sizes), tiles[i].rows / kLanes);
    typename V::Forward step(in, order, most);
    for_each_step(tiles[i], most,
                  [&](int64_t row, int64_t panels) { step.run(tiles[i].expert, row, panels, hidden, rows); });
  });
  combine<T>(order, rows, in.gate_TK.const_data_ptr<float>(), out.y_TD.mutable_data_ptr<T>(), in.x_TD.size(0),
             sizes.dim);
  if (in.with_pair_sq) out.pair_sq_TK = pair_squares<T>(order, rows, in.gate_TK, sizes.dim);
  out.order = kept.tables();
  return out;
}

/// The memory of ExpertRows.
template <class T>
class RowStore {
 public:
  RowStore(const Sizes& sizes, int64_t rows)
      : hidden_(rows * sizes.hidden + kSlack), active_(rows * sizes.width + kSlack) {
    std::fill_n(hidden_.get() + rows * sizes.hidden, kSlack, T{});
    std::fill_n(active_.get() + rows * sizes.width, kSlack, T{});
  }
  ExpertRows<T> rows() const { return {hidden_.get(), active_.get()}; }

 private:
  Scratch<T> hidden_, active_;
};

/// The weights' gradients.
template <class V>
class WeightGradients {
  using T = typename V::Element;

 public:
  WeightGradients(const MoeInputs& in, const PairOrder& order, const at::Tensor& grad_TD, const MoeGradients& out)
      : in_(in),
        order_(order),
        sizes_(in),
        grad_(grad_TD.const_data_ptr<T>()),
        gate_up_(out.w_gate_up_EGD.mutable_data_ptr<T>()),
        down_(out.w_down_EDF.mutable_data_ptr<T>()) {}

  int64_t parts() const { return blocks(sizes_.hidden) + blocks(sizes_.dim); }
  /// Part `part` of an expert's, in blocks of kWeightBlock rows.
  void run(int64_t expert, int64_t part, ExpertRows<T> rows) const {
    if (part < blocks(sizes_.hidden)) {
      gate_up(block_of(expert, part, sizes_.hidden), rows);
    } else {
      down(block_of(expert, part - blocks(sizes_.hidden), sizes_.dim), rows);
    }
  }
  void run_all(int64_t expert, ExpertRows<T> rows) const {
    gate_up({expert, 0, sizes_.hidden}, rows);
    down({expert, 0, sizes_.dim}, rows);
  }
  void zero(int64_t expert) const {
    const int64_t down = sizes_.dim * sizes_.width;
    std::fill_n(gate_up_ + expert * 2 * down, 2 * down, T{});
    std::fill_n(down_ + expert * down, down, T{});
  }

 private:
  static int64_t blocks(int64_t all) { return (all + kWeightBlock - 1) / kWeightBlock; }
  static WeightRows block_of(int64_t expert, int64_t block, int64_t all) {
    return {expert, block * kWeightBlock, std::min(kWeightBlock, all - block * kWeightBlock)};
  }
  void gate_up(const WeightRows& part, ExpertRows<T> rows) const {
    V::gate_up_gradient(in_, order_, rows, part, gate_up_ + (part.expert * sizes_.hidden + part.begin) * sizes_.dim);
  }
  void down(const WeightRows& part, ExpertRows<T> rows) const {
    V::down_gradient(in_, order_, rows, grad_, part, down_ + (part.expert * sizes_.dim + part.begin) * sizes_.width);
  }

  const MoeInputs& in_;
  const PairOrder& order_;
  const Sizes sizes_;
  const T* grad_;
  T *gate_up_, *down_;
};

/// An expert whose rows are one task gets its weights' gradients at once, while its rows are in the caches. The weights
/// of an expert with more rows follow when all of them are there, in blocks of rows.
template <class V>
MoeGradients words_backward(const MoeInputs& in, const MoeForward& from, const at::Tensor& grad_TD) {
  using T = typename V::Element;
  const Sizes sizes(in);
  const KeptOrder kept = detail::order_from(in, from.order);
  const PairOrder& order = kept.order;
  COPPICE_CHECK(order.rows == from.hidden_PG.size(0));
  MoeGradients out{at::empty_like(in.x_TD), at::empty_like(in.w_gate_up_EGD), at::empty_like(in.w_down_EDF),
                   at::empty_like(in.gate_TK)};
  const auto in_PD = at::empty({order.rows, sizes.dim}, in.x_TD.options());
  const T* const hidden = from.hidden_PG.const_data_ptr<T>();
  T* const grad_in = in_PD.mutable_data_ptr<T>();
  auto* const grad_gates = out.gate_TK.mutable_data_ptr<float>();
  const WeightGradients<V> weights(in, order, grad_TD, out);

  std::vector<std::optional<RowStore<T>>> of_many_tasks(sizes.experts);
  std::vector<int64_t> later;  // experts
  for (int64_t e = 0; e < sizes.experts; ++e) {
    const int64_t rows = order.rows_of(e);
    if (rows > kTaskRows) of_many_tasks[e].emplace(sizes, rows);
    if (rows > kTaskRows || rows == 0) later.push_back(e);
  }
  const auto tiles = cut_tiles(order, kTaskRows);
  parallel_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t i) {
    const Tile& tile = tiles[i];
    const bool is_all = !of_many_tasks[tile.expert];
    const std::optional<RowStore<T>> own =
        is_all ? std::optional<RowStore<T>>(std::in_place, sizes, tile.rows) : std::nullopt;
    const ExpertRows<T> rows = (is_all ? own : of_many_tasks[tile.expert])->rows();
    const int64_t most = std::min(V::step_panels(sizes), tile.rows / kLanes);
    {
      typename V::Backward step(in, order, tile.expert, most);
      for_each_step(tile, most, [&](int64_t row, int64_t panels) {
        step.run(row, panels, grad_TD.const_data_ptr<T>(), hidden, rows, grad_in, grad_gates);
      });
    }
    if (is_all) weights.run_all(tile.expert, rows);
  });
  parallel_tasks(static_cast<int64_t>(later.size()) * weights.parts(), [&](int64_t task) {
    const int64_t expert = later[task / weights.parts()], part = task % weights.parts();
    if (of_many_tasks[expert]) {
      weights.run(expert, part, of_many_tasks[expert]->rows());
    } else if (part == 0) {
      weights.zero(expert);
    }
  });
  combine<T>(order, grad_in, nullptr, out.x_TD.mutable_data_ptr<T>(), in.x_TD.size(0), sizes.dim);
  return out;
}

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options
