// The MoE layer on the CPU: pairs sorted by expert, GEMMs on contiguous rows, and everything between them in
// one loop. Tiles of (expert, rows) depend only on the sizes, and each runs on one thread, so the bits do not depend on
// threads.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <bit>
#include <cstring>

#include "coppice/base/check.h"
#include "coppice/base/lane_sum.h"
#include "coppice/kernels/activation_detail.h"
#include "coppice/kernels/cpu/moe_rows_detail.h"
#include "coppice/kernels/cpu/scratch_detail.h"
#include "coppice/kernels/cpu/small_products_detail.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/moe_detail.h"
#include "coppice/kernels/pair_order_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {
namespace {

using detail::Activated;
using detail::ClampedSwiglu;
using detail::KeptOrder;
using detail::MoeForward;
using detail::MoeGradients;
using detail::MoeInputs;
using detail::Swiglu;

constexpr int64_t kTileRows = 512;     // large enough for a fast GEMM, small enough to distribute over threads
constexpr int64_t kWeightBlock = 256;  // rows of a weight's gradient in one task

/// oneDNN compiles a kernel for each new shape, which takes longer than running it. In bf16 an expert's rows are
/// therefore padded to a multiple of 32 or, if larger, of an eighth of their power of two.
int64_t filled_up(int64_t rows, at::ScalarType dtype) {
  if (dtype != at::kBFloat16 || widens(dtype)) return rows;
  const auto eighth = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows)) / 8);
  const int64_t quantum = std::max<int64_t>(32, eighth);
  return (rows + quantum - 1) / quantum * quantum;
}

KeptOrder order_of(const MoeInputs& in) {
  return order_pairs(in, [&](int64_t rows) { return filled_up(rows, in.x_TD.scalar_type()); });
}

/// out[i] = from[token of row i]; rows of padding are zero.
template <class T>
void gather(const PairOrder& order, const Tile& tile, const T* from_TD, T* out, int64_t dim) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t pair = order.pair_of_row[tile.row + i];
    if (pair < 0) {
      std::memset(static_cast<void*>(out + i * dim), 0, dim * sizeof(T));
    } else {
      std::memcpy(static_cast<void*>(out + i * dim), from_TD + pair / order.top_k * dim, dim * sizeof(T));
    }
  }
}

/// One expert's biases, or null.
template <class T>
const T* of_expert(const at::Tensor& bias_EN, int64_t expert) {
  return bias_EN.defined() ? bias_EN.const_data_ptr<T>() + expert * bias_EN.size(1) : nullptr;
}

/// Calls f with the activation's type.
template <class F>
auto with_activation(ExpertActivation activation, const F& f) {
  return activation == ExpertActivation::kSwiglu ? f(Swiglu{}) : f(ClampedSwiglu{});
}

template <class T, class Activation>
COPPICE_FOR_AVX512_TOO void activate_row(const T* __restrict gate, const T* __restrict up, T* __restrict out,
                                         int64_t width) {
  for (int64_t f = 0; f < width; ++f) store(out[f], Activation::at(load(gate[f]), load(up[f])).value);
}

template <class T, class Activation>
MoeForward forward(const MoeInputs& in) {
  const int64_t tokens = in.x_TD.size(0), dim = in.x_TD.size(1), width = in.w_down_EDF.size(2);
  const auto options = in.x_TD.options();
  const KeptOrder kept = order_of(in);
  const PairOrder& order = kept.order;
  const auto tiles = cut_tiles(order, kTileRows);
  MoeForward out{at::empty_like(in.x_TD), at::empty({order.rows, 2 * width}, options)};
  const auto out_PD = at::empty({order.rows, dim}, options);
  const auto* const x = in.x_TD.const_data_ptr<T>();

  auto *const all_hidden = out.hidden_PG.mutable_data_ptr<T>(), *const all_out = out_PD.mutable_data_ptr<T>();

  parallel_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t i) {
    const auto [expert, row, rows] = tiles[i];
    const Scratch<T> x_RD(rows * dim), active_RF(rows * width);
    gather(order, tiles[i], x, x_RD.get(), dim);
    T* const hidden = all_hidden + row * 2 * width;
    multiply_into(hidden, MatrixOf<T>::of(x_RD.get(), rows, dim), MatrixOf<T>::of(in.w_gate_up_EGD, expert).t(),
                  of_expert<T>(in.form.gate_up_bias_EG, expert));
    for (int64_t r = 0; r < rows; ++r) {
      const T* const gate = hidden + r * 2 * width;
      activate_row<T, Activation>(gate, gate + width, active_RF.get() + r * width, width);
    }
    multiply_into(all_out + row * dim, MatrixOf<T>::of(active_RF.get(), rows, width),
                  MatrixOf<T>::of(in.w_down_EDF, expert).t(), of_expert<T>(in.form.down_bias_ED, expert));
  });
  combine(order, out_PD.const_data_ptr<T>(), in.gate_TK.const_data_ptr<float>(), out.y_TD.mutable_data_ptr<T>(), tokens,
          dim);
  if (in.with_pair_sq) out.pair_sq_TK = pair_squares(order, out_PD.const_data_ptr<T>(), in.gate_TK, dim);
  out.order = kept.tables();
  return out;
}

/// One row of the activation's backward. `grad` is dL/dA for the activation A without its gate; returns <grad, A>, the
/// gradient of the gate.
template <class T, class Activation>
COPPICE_FOR_AVX512_TOO float backward_row(const T* __restrict gate, const T* __restrict up, const T* __restrict grad,
                                          float weight, T* __restrict active, T* __restrict grad_gate,
                                          T* __restrict grad_up, float* __restrict product, int64_t width) {
  for (int64_t f = 0; f < width; ++f) {
    const Activated a = Activation::at(load(gate[f]), load(up[f]));
    const float d = load(grad[f]), weighted = d * weight;
    product[f] = d * a.value;
    store(active[f], weight * a.value);
    store(grad_gate[f], weighted * a.by_gate);
    store(grad_up[f], weighted * a.by_up);
  }
  return lane_sum<float>(width, [&](int64_t f) { return product[f]; });
}

/// Results of the backward pass of the rows for the gradients of weights and inputs.
struct RowGradients {
  at::Tensor x_PD, grad_PD;     ///< gathered inputs and output gradients
  at::Tensor active_PF;         ///< gate * A
  at::Tensor hidden_PG, in_PD;  ///< gradients of pre-activations and of the gathered inputs
};

template <class T, class Activation>
RowGradients backward_rows(const MoeInputs& in, const PairOrder& order, const at::Tensor& hidden_PG,
                           const at::Tensor& grad_TD, const at::Tensor& grad_gate_TK) {
  const int64_t dim = in.x_TD.size(1), width = in.w_down_EDF.size(2);
  const auto options = in.x_TD.options();
  const RowGradients out{at::empty({order.rows, dim}, options), at::empty({order.rows, dim}, options),
                         at::empty({order.rows, width}, options), at::empty({order.rows, 2 * width}, options),
                         at::empty({order.rows, dim}, options)};
  const auto* const x = in.x_TD.const_data_ptr<T>();
  const auto* const grad = grad_TD.const_data_ptr<T>();
  const auto* const gates = in.gate_TK.const_data_ptr<float>();
  auto* const grad_gates = grad_gate_TK.mutable_data_ptr<float>();
  const auto tiles = cut_tiles(order, kTileRows);

  auto *const all_x = out.x_PD.mutable_data_ptr<T>(), *const all_grad = out.grad_PD.mutable_data_ptr<T>();
  auto *const all_active = out.active_PF.mutable_data_ptr<T>(), *const all_hidden = out.hidden_PG.mutable_data_ptr<T>();
  auto* const all_in = out.in_PD.mutable_data_ptr<T>();

  parallel_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t i) {
    const auto [expert, row, rows] = tiles[i];
    gather(order, tiles[i], x, all_x + row * dim, dim);
    T* const grad_rows = all_grad + row * dim;
    gather(order, tiles[i], grad, grad_rows, dim);
    const Scratch<T> grad_active_RF(rows * width);
    multiply_into(grad_active_RF.get(), MatrixOf<T>::of(grad_rows, rows, dim), MatrixOf<T>::of(in.w_down_EDF, expert));
    const T* const hidden = hidden_PG.const_data_ptr<T>() + row * 2 * width;
    T *const active = all_active + row * width, *const grad_hidden = all_hidden + row * 2 * width;
    const Scratch<float> product(width);
    const T* const bias = of_expert<T>(in.form.down_bias_ED, expert);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t pair = order.pair_of_row[row + r], at = r * 2 * width;
      const float dot = backward_row<T, Activation>(hidden + at, hidden + at + width, grad_active_RF.get() + r * width,
                                                    pair < 0 ? 0.0f : gates[pair], active + r * width, grad_hidden + at,
                                                    grad_hidden + at + width, product.get(), width);
      const auto through_bias = [&](int64_t d) { return load(grad_rows[r * dim + d]) * load(bias[d]); };
      if (pair >= 0) grad_gates[pair] = bias ? dot + lane_sum<float>(dim, through_bias) : dot;
    }
    multiply_into(all_in + row * dim, MatrixOf<T>::of(grad_hidden, rows, 2 * width),
                  MatrixOf<T>::of(in.w_gate_up_EGD, expert));
  });
  return out;
}

/// weight_e = left_e' right_e for every expert's rows, in blocks of the weight's rows; zero for an expert without rows.
template <class T>
struct WeightGradient {
  at::Tensor weight_EMN, left_PM, right_PN;

  int64_t blocks() const { return (weight_EMN.size(1) + kWeightBlock - 1) / kWeightBlock; }
  int64_t tasks() const { return weight_EMN.size(0) * blocks(); }
  void run(const PairOrder& order, int64_t task) const {
    const int64_t expert = task / blocks(), begin = task % blocks() * kWeightBlock;
    const int64_t all_rows = weight_EMN.size(1), cols = weight_EMN.size(2);
    const int64_t rows = std::min(kWeightBlock, all_rows - begin);
    T* const out = weight_EMN.mutable_data_ptr<T>() + (expert * all_rows + begin) * cols;
    const int64_t first = order.first_row[expert], count = order.rows_of(expert);
    if (count == 0) {
      std::fill_n(out, rows * cols, T(0.0f));
      return;
    }
    const auto left = MatrixOf<T>::of(left_PM).rows_from(first, count).cols_from(begin, rows);
    multiply_into(out, left.t(), MatrixOf<T>::of(right_PN).rows_from(first, count));
  }
};

/// The sum of each expert's rows, times their gates if given: the gradient of a bias.
template <class T>
at::Tensor bias_gradient(const PairOrder& order, const at::Tensor& rows_PN, const float* gates) {
  const int64_t dim = rows_PN.size(1);
  const auto out_EN = at::empty({order.experts, dim}, rows_PN.options());
  const auto* const rows = rows_PN.const_data_ptr<T>();
  auto* const out = out_EN.mutable_data_ptr<T>();
  parallel_tasks(order.experts, [&](int64_t expert) {
    std::vector<float> sum(dim, 0.0f);
    for (int64_t row = order.first_row[expert]; row < order.first_row[expert + 1]; ++row) {
      const int64_t pair = order.pair_of_row[row];
      if (pair >= 0) add_row(sum.data(), rows + row * dim, gates ? gates[pair] : 1.0f, dim);
    }
    for (int64_t d = 0; d < dim; ++d) store(out[expert * dim + d], sum[d]);
  });
  return out_EN;
}

template <class T, class Activation>
MoeGradients backward(const MoeInputs& in, const MoeForward& from, const at::Tensor& grad_TD) {
  const KeptOrder kept = detail::order_from(in, from.order);
  const PairOrder& order = kept.order;
  COPPICE_CHECK(order.rows == from.hidden_PG.size(0));
  MoeGradients out{at::empty_like(in.x_TD), at::empty_like(in.w_gate_up_EGD), at::empty_like(in.w_down_EDF),
                   at::empty_like(in.gate_TK)};
  const RowGradients rows = backward_rows<T, Activation>(in, order, from.hidden_PG, grad_TD, out.gate_TK);
  const WeightGradient<T> gate_up{out.w_gate_up_EGD, rows.hidden_PG, rows.x_PD};
  const WeightGradient<T> down{out.w_down_EDF, rows.grad_PD, rows.active_PF};
  parallel_tasks(gate_up.tasks() + down.tasks(), [&](int64_t task) {
    if (task < gate_up.tasks()) {
      gate_up.run(order, task);
    } else {
      down.run(order, task - gate_up.tasks());
    }
  });
  combine<T>(order, rows.in_PD.const_data_ptr<T>(), nullptr, out.x_TD.mutable_data_ptr<T>(), in.x_TD.size(0),
             in.x_TD.size(1));
  if (in.form.gate_up_bias_EG.defined()) out.gate_up_bias_EG = bias_gradient<T>(order, rows.hidden_PG, nullptr);
  if (in.form.down_bias_ED.defined())
    out.down_bias_ED = bias_gradient<T>(order, rows.grad_PD, in.gate_TK.const_data_ptr<float>());
  return out;
}

MoeForward forward_of_any(const MoeInputs& in) {
  return with_scalar(in.x_TD, [&]<class T>(T) {
    return with_activation(in.form.activation, [&]<class A>(A) { return forward<T, A>(in); });
  });
}

MoeGradients backward_of_any(const MoeInputs& in, const MoeForward& from, const at::Tensor& grad_TD) {
  return with_scalar(in.x_TD, [&]<class T>(T) {
    return with_activation(in.form.activation, [&]<class A>(A) { return backward<T, A>(in, from, grad_TD); });
  });
}

}  // namespace

const detail::MoeVariant kExpertsByGemms{forward_of_any, backward_of_any};

}  // namespace coppice::kernels::cpu
