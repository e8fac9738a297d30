// The MoE layer on processors with AVX-512. Blocks of 32 tokens of an expert pass through gather, GEMM, SwiGLU and GEMM
// within the processor's caches. The vector lanes are tokens, so weights are read in their memory order.
//
// For an expert with R rows (token-expert pairs, a multiple of 16), the data of the backward pass are stored in blocks
// of 16 tokens: hidden [R/16][G][16]. Tasks depend only on the sizes, and each runs on one thread, so the bits do not
// depend on threads.

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

constexpr int64_t kTokens = kLanes * kPanels;  // tokens that are processed together
constexpr int64_t kTileRows = 512;             // rows of one expert per task
constexpr int64_t kWeightBlock = 512;          // rows of a weight's gradient per task

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

/// Forward of up to 32 tokens.
template <class T>
class ForwardStep {
 public:
  ForwardStep(const MoeInputs& in, const PairOrder& order)
      : sizes_(in),
        order_(order),
        x_(in.x_TD.const_data_ptr<T>()),
        gate_up_(in.w_gate_up_EGD.const_data_ptr<T>()),
        down_(in.w_down_EDF.const_data_ptr<T>()),
        x_panels_(kTokens * sizes_.dim / kPerWord<T>),
        active_panels_(kTokens * sizes_.width / kPerWord<T>),
        block_(2 * kRows * kTokens) {}

  void run(int64_t expert, int64_t row, int64_t panels, T* hidden_PG, T* out_PD) {
    pack_tokens(order_, row, panels, x_, sizes_.dim, x_panels_.get());
    activate(expert, panels, hidden_PG + row * sizes_.hidden);
    project(expert, panels, out_PD + row * sizes_.dim);
  }

 private:
  /// Computes pre-activations, and from them the active units as panels.
  void activate(int64_t expert, int64_t panels, T* hidden) {
    const int64_t words = sizes_.dim / kPerWord<T>, width = sizes_.width;
    const Words weights{as_words(gate_up_ + expert * sizes_.hidden * sizes_.dim), words, 1};
    float* const gate = block_.get();
    float* const up = gate + kRows * kTokens;
    for (int64_t f = 0; f < width; f += kRows) {
      multiply_block<T>(weights.row(f), x_panels_.get(), words * kLanes, words, panels, gate);
      multiply_block<T>(weights.row(width + f), x_panels_.get(), words * kLanes, words, panels, up);
      for (int64_t j = 0; j < panels; ++j) {
        T* const store = hidden + j * kLanes * sizes_.hidden;
        Word* const active = active_panels_.get() + j * width / kPerWord<T> * kLanes;
        for (int64_t i = 0; i < kRows; i += 2) {
          __m512 a[2];
          for (int64_t n = 0; n < 2; ++n) {
            const __m512 g = rounded<T>(_mm512_load_ps(gate + ((i + n) * panels + j) * kLanes));
            const __m512 u = rounded<T>(_mm512_load_ps(up + ((i + n) * panels + j) * kLanes));
            put(g, store + (f + i + n) * kLanes);
            put(u, store + (width + f + i + n) * kLanes);
            a[n] = _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u);
          }
          put_words(a[0], a[1], active + (f + i) / kPerWord<T> * kLanes, kLanes, T{});
        }
      }
    }
  }

  /// The experts' outputs, as rows.
  void project(int64_t expert, int64_t panels, T* out) {
    const int64_t words = sizes_.width / kPerWord<T>, dim = sizes_.dim;
    const Words weights{as_words(down_ + expert * dim * sizes_.width), words, 1};
    for (int64_t d = 0; d < dim; d += 2 * kRows) {
      for (int64_t half = 0; half < 2; ++half) {
        multiply_block<T>(weights.row(d + half * kRows), active_panels_.get(), words * kLanes, words, panels,
                          block_.get() + half * kRows * panels * kLanes);
      }
      for (int64_t j = 0; j < panels; ++j) {
        __m512i r[16];
        for (int64_t i = 0; i < 16; ++i) r[i] = _mm512_load_si512(block_.get() + (i * panels + j) * kLanes);
        transpose(r);
        for (int64_t i = 0; i < 16; ++i) put(_mm512_castsi512_ps(r[i]), out + (j * kLanes + i) * dim + d);
      }
    }
  }

  const Sizes sizes_;
  const PairOrder& order_;
  const T *x_, *gate_up_, *down_;
  Scratch<Word> x_panels_, active_panels_;
  Scratch<float> block_;
};

/// Calls step(row, panels) for the rows of a tile, 32 or 16 at a time.
template <class Step>
void for_each_step(const Tile& tile, Step step) {
  for (int64_t row = tile.row; row < tile.row + tile.rows; row += kTokens) {
    step(row, std::min(kPanels, (tile.row + tile.rows - row) / kLanes));
  }
}

template <class T>
MoeForward forward(const MoeInputs& in) {
  const Sizes sizes(in);
  const KeptOrder kept = order_of(in);
  const PairOrder& order = kept.order;
  const auto tiles = cut_tiles(order, kTileRows);
  MoeForward out{at::empty_like(in.x_TD), at::empty({order.rows, sizes.hidden}, in.x_TD.options())};
  const auto out_PD = at::empty({order.rows, sizes.dim}, in.x_TD.options());
  T* const hidden = out.hidden_PG.mutable_data_ptr<T>();
  T* const rows = out_PD.mutable_data_ptr<T>();
  parallel_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t i) {
    ForwardStep<T> step(in, order);
    for_each_step(tiles[i], [&](int64_t row, int64_t panels) { step.run(tiles[i].expert, row, panels, hidden, rows); });
  });
  combine<T>(order, rows, in.gate_TK.const_data_ptr<float>(), out.y_TD.mutable_data_ptr<T>(), in.x_TD.size(0),
             sizes.dim);
  if (in.with_pair_sq) out.pair_sq_TK = pair_squares<T>(order, rows, in.gate_TK, sizes.dim);
  return out;
}

/// Results of the backward pass of the rows for the gradients of weights and inputs. For an expert with R rows from
/// `first` on: hidden [G][R] at first * G, active [F][R] (gate * A) at first * F.
struct RowGradients {
  at::Tensor hidden_GP, active_FP, in_PD;
};

/// Backward of the rows of one expert, up to 32 tokens at a time.
template <class T>
class BackwardStep {
 public:
  BackwardStep(const MoeInputs& in, const PairOrder& order, int64_t expert)
      : sizes_(in),
        order_(order),
        first_(order.first_row[expert]),
        rows_(order.rows_of(expert)),
        gates_(in.gate_TK.const_data_ptr<float>()),
        down_(sizes_.dim / kPerWord<T> * sizes_.width),
        gate_up_(sizes_.hidden / kPerWord<T> * sizes_.dim),
        grad_panels_(kTokens * sizes_.dim / kPerWord<T>),
        hidden_words_(kTokens * sizes_.hidden / kPerWord<T>),
        block_(kRows * kTokens) {
    const int64_t dim = sizes_.dim, width = sizes_.width, hidden = sizes_.hidden;
    const T* const down = in.w_down_EDF.const_data_ptr<T>() + expert * dim * width;
    pair_rows<T>([&](int64_t d) { return down + d * width; }, dim, width, down_.get(), width);
    const T* const gate_up = in.w_gate_up_EGD.const_data_ptr<T>() + expert * hidden * dim;
    for (int64_t d = 0; d < dim; d += kLanes) {
      pair_rows<T>([&](int64_t g) { return gate_up + g * dim + d; }, hidden, kLanes,
                   gate_up_.get() + d * hidden / kPerWord<T>, kLanes);
    }
  }

  void run(int64_t row, int64_t panels, const T* grad_TD, const T* hidden_PG, const RowGradients& out,
           float* grad_gates) {
    pack_tokens(order_, row, panels, grad_TD, sizes_.dim, grad_panels_.get());
    activate(row, panels, hidden_PG + row * sizes_.hidden, out, grad_gates);
    project(panels, out.in_PD.mutable_data_ptr<T>() + row * sizes_.dim);
  }

 private:
  /// Gradients of the pre-activations, of the gates, and the active units times their gates.
  void activate(int64_t row, int64_t panels, const T* hidden, const RowGradients& out, float* grad_gates) {
    const int64_t width = sizes_.width, words = sizes_.dim / kPerWord<T>, in_expert = row - first_;
    T* const grad_hidden = out.hidden_GP.mutable_data_ptr<T>() + first_ * sizes_.hidden + in_expert;
    T* const active = out.active_FP.mutable_data_ptr<T>() + first_ * width + in_expert;
    const Words weights{down_.get(), 1, width};
    __m512 gate_of[kPanels], dots[kPanels];
    for (int64_t j = 0; j < panels; ++j) {
      gate_of[j] = gates(row + j * kLanes);
      dots[j] = _mm512_setzero_ps();
    }
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t f = 0; f < width; f += kRows) {
      multiply_block<T>(weights.row(f), grad_panels_.get(), words * kLanes, words, panels, block_.get());
      for (int64_t j = 0; j < panels; ++j) {
        const T* const stored = hidden + j * kLanes * sizes_.hidden;
        for (int64_t i = 0; i < kRows; i += 2) {
          __m512 grad_gate[2], grad_up[2];
          for (int64_t n = 0; n < 2; ++n) {
            const int64_t unit = f + i + n;
            const __m512 g = get(stored + unit * kLanes), u = get(stored + (width + unit) * kLanes);
            const __m512 d = _mm512_load_ps(block_.get() + ((i + n) * panels + j) * kLanes);
            const __m512 s = sigmoid(g), silu = _mm512_mul_ps(g, s), a = _mm512_mul_ps(silu, u);
            dots[j] = _mm512_fmadd_ps(d, a, dots[j]);
            const __m512 weighted = _mm512_mul_ps(d, gate_of[j]);
            const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one));
            grad_gate[n] = _mm512_mul_ps(_mm512_mul_ps(weighted, u), slope);
            grad_up[n] = _mm512_mul_ps(weighted, silu);
            put(_mm512_mul_ps(gate_of[j], a), active + unit * rows_ + j * kLanes);
            put(grad_gate[n], grad_hidden + unit * rows_ + j * kLanes);
            put(grad_up[n], grad_hidden + (width + unit) * rows_ + j * kLanes);
          }
          const int64_t step = panels * kLanes;
          Word* const to = hidden_words_.get() + j * kLanes;
          put_words(grad_gate[0], grad_gate[1], to + (f + i) / kPerWord<T> * step, step, T{});
          put_words(grad_up[0], grad_up[1], to + (width + f + i) / kPerWord<T> * step, step, T{});
        }
      }
    }
    for (int64_t j = 0; j < panels; ++j) {
      alignas(64) float dot_of[kLanes];
      _mm512_store_ps(dot_of, dots[j]);
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t pair = order_.pair_of_row[row + j * kLanes + i];
        if (pair >= 0) grad_gates[pair] = dot_of[i];
      }
    }
  }

  __m512 gates(int64_t row) const {
    alignas(64) float gate[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t pair = order_.pair_of_row[row + i];
      gate[i] = pair < 0 ? 0.0f : gates_[pair];
    }
    return _mm512_load_ps(gate);
  }

  /// Gradients of the gathered inputs, as rows.
  void project(int64_t panels, T* out) {
    const int64_t words = sizes_.hidden / kPerWord<T>, tokens = panels * kLanes;
    const Words grads{hidden_words_.get(), 1, tokens};
    for (int64_t d = 0; d < sizes_.dim; d += kPanels * kLanes) {
      for (int64_t token = 0; token < tokens; token += kRows) {
        multiply_block<T>(grads.row(token), gate_up_.get() + d * words, words * kLanes, words, kPanels, block_.get());
        for (int64_t i = 0; i < kRows; ++i) {
          for (int64_t j = 0; j < kPanels; ++j) {
            put(_mm512_load_ps(block_.get() + (i * kPanels + j) * kLanes),
                out + (token + i) * sizes_.dim + d + j * kLanes);
          }
        }
      }
    }
  }

  const Sizes sizes_;
  const PairOrder& order_;
  const int64_t first_, rows_;
  const float* gates_;
  Scratch<Word> down_, gate_up_;  // [D words][F]; [D/16][G words][16]
  Scratch<Word> grad_panels_, hidden_words_;
  Scratch<float> block_;
};

/// Rows [begin, begin + count) of an expert's product of a left matrix and panels; `pack` makes the panels of 32
/// columns.
template <class T, class Pack>
void weight_rows(Words left, int64_t words, int64_t count, int64_t cols, Pack pack, T* out) {
  const Scratch<Word> panels(kPanels * words * kLanes);
  const Scratch<float> block(kRows * kTokens);
  for (int64_t c = 0; c < cols; c += kPanels * kLanes) {
    for (int64_t j = 0; j < kPanels; ++j) pack(c + j * kLanes, panels.get() + j * words * kLanes);
    for (int64_t row = 0; row < count; row += kRows) {
      multiply_block<T>(left.row(row), panels.get(), words * kLanes, words, kPanels, block.get());
      for (int64_t i = 0; i < kRows; ++i) {
        for (int64_t j = 0; j < kPanels; ++j) {
          put(_mm512_load_ps(block.get() + (i * kPanels + j) * kLanes), out + (row + i) * cols + c + j * kLanes);
        }
      }
    }
  }
}

/// dW_gate_up = dH' X of one expert, rows [begin, begin + count).
template <class T>
void gate_up_gradient(const MoeInputs& in, const PairOrder& order, const RowGradients& rows, int64_t expert,
                      int64_t begin, int64_t count, T* out) {
  const Sizes sizes(in);
  const int64_t first = order.first_row[expert], words = order.rows_of(expert) / kPerWord<T>;
  const T* const hidden = rows.hidden_GP.const_data_ptr<T>() + first * sizes.hidden + begin * order.rows_of(expert);
  const T* const x = in.x_TD.const_data_ptr<T>();
  const auto pack = [&](int64_t col, Word* panel) {
    const auto row = [&](int64_t r) {
      const T* const from = gathered(order, first + r, x, sizes.dim);
      return from == nullptr ? nullptr : from + col;
    };
    pair_rows<T>(row, order.rows_of(expert), kLanes, panel, kLanes);
  };
  weight_rows<T>({as_words(hidden), words, 1}, words, count, sizes.dim, pack, out + begin * sizes.dim);
}

/// dW_down = dY' (gate A) of one expert, rows [begin, begin + count).
template <class T>
void down_gradient(const MoeInputs& in, const PairOrder& order, const RowGradients& rows, const T* grad_TD,
                   int64_t expert, int64_t begin, int64_t count, T* out) {
  const Sizes sizes(in);
  const int64_t first = order.first_row[expert], words = order.rows_of(expert) / kPerWord<T>;
  const Scratch<Word> left(words * count);
  const auto row = [&](int64_t r) {
    const T* const from = gathered(order, first + r, grad_TD, sizes.dim);
    return from == nullptr ? nullptr : from + begin;
  };
  pair_rows<T>(row, order.rows_of(expert), count, left.get(), count);
  const T* const active = rows.active_FP.const_data_ptr<T>() + first * sizes.width;
  const auto pack = [&](int64_t col, Word* panel) {
    pack_rows([&](int i) { return as_words(active + (col + i) * order.rows_of(expert)); }, words, panel);
  };
  weight_rows<T>({left.get(), 1, count}, words, count, sizes.width, pack, out + begin * sizes.width);
}

template <class T>
MoeGradients backward(const MoeInputs& in, const at::Tensor& hidden_PG, const at::Tensor& grad_TD) {
  const Sizes sizes(in);
  const KeptOrder kept = order_of(in);
  const PairOrder& order = kept.order;
  COPPICE_CHECK(order.rows == hidden_PG.size(0));
  MoeGradients out{at::empty_like(in.x_TD), at::empty_like(in.w_gate_up_EGD), at::empty_like(in.w_down_EDF),
                   at::empty_like(in.gate_TK)};
  const auto options = in.x_TD.options();
  const RowGradients rows{at::empty({sizes.hidden, order.rows}, options), at::empty({sizes.width, order.rows}, options),
                          at::empty({order.rows, sizes.dim}, options)};
  const T* const grad = grad_TD.const_data_ptr<T>();
  const auto tiles = cut_tiles(order, kTileRows);
  parallel_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t i) {
    BackwardStep<T> step(in, order, tiles[i].expert);
    for_each_step(tiles[i], [&](int64_t row, int64_t panels) {
      step.run(row, panels, grad, hidden_PG.const_data_ptr<T>(), rows, out.gate_TK.mutable_data_ptr<float>());
    });
  });

  const auto blocks = [](int64_t all) { return (all + kWeightBlock - 1) / kWeightBlock; };
  const int64_t gate_up_blocks = blocks(sizes.hidden), down_blocks = blocks(sizes.dim);
  parallel_tasks(sizes.experts * (gate_up_blocks + down_blocks), [&](int64_t task) {
    const int64_t expert = task / (gate_up_blocks + down_blocks), block = task % (gate_up_blocks + down_blocks);
    const bool is_down = block >= gate_up_blocks;
    const int64_t all = is_down ? sizes.dim : sizes.hidden, cols = is_down ? sizes.width : sizes.dim;
    const int64_t begin = (is_down ? block - gate_up_blocks : block) * kWeightBlock;
    const int64_t count = std::min(kWeightBlock, all - begin);
    const auto& weight = is_down ? out.w_down_EDF : out.w_gate_up_EGD;
    T* const of_expert = weight.template mutable_data_ptr<T>() + expert * all * cols;
    if (order.rows_of(expert) == 0) {
      std::fill_n(of_expert + begin * cols, count * cols, T{});
    } else if (is_down) {
      down_gradient<T>(in, order, rows, grad, expert, begin, count, of_expert);
    } else {
      gate_up_gradient<T>(in, order, rows, expert, begin, count, of_expert);
    }
  });
  combine<T>(order, rows.in_PD.template const_data_ptr<T>(), nullptr, out.x_TD.mutable_data_ptr<T>(), in.x_TD.size(0),
             sizes.dim);
  return out;
}

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options

namespace coppice::kernels::cpu {

namespace {

MoeForward forward_of_any(const MoeInputs& in) {
  return with_scalar(in.x_TD, [&]<class T>(T) { return forward<T>(in); });
}

MoeGradients backward_of_any(const MoeInputs& in, const at::Tensor& hidden_PG, const at::Tensor& grad_TD) {
  return with_scalar(in.x_TD, [&]<class T>(T) { return backward<T>(in, hidden_PG, grad_TD); });
}

}  // namespace

const detail::MoeVariant kExpertsByWords{forward_of_any, backward_of_any};

}  // namespace coppice::kernels::cpu
