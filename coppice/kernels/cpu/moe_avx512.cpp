// The MoE layer on processors with AVX-512. Blocks of 32 tokens of an expert pass through gather, GEMM, SwiGLU and GEMM
// within the processor's caches. The vector lanes are tokens, so weights are read in their memory order.
//
// For an expert with R rows (token-expert pairs, a multiple of 16), the data of the backward pass are stored in blocks
// of 16 tokens: hidden [R/16][G][16]. Tasks depend only on the sizes, and each runs on one thread, so the bits do not
// depend on threads.

#include "coppice/kernels/cpu/moe_words_detail.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kTokens = kLanes * kPanels;  // tokens that are processed together

/// Forward of up to 32 tokens.
template <class T>
class ForwardStep {
 public:
  ForwardStep(const MoeInputs& in, const PairOrder& order, int64_t)
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
        T* const to = out + j * kLanes * dim + d;
        put_turned(block_.get() + j * kLanes, panels * kLanes, [&](int64_t i) { return to + i * dim; });
      }
    }
  }

  const Sizes sizes_;
  const PairOrder& order_;
  const T *x_, *gate_up_, *down_;
  Scratch<Word> x_panels_, active_panels_;
  Scratch<float> block_;
};

/// Backward of the rows of one expert, up to 32 tokens at a time.
template <class T>
class BackwardStep {
 public:
  BackwardStep(const MoeInputs& in, const PairOrder& order, int64_t expert, int64_t)
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

  void run(int64_t row, int64_t panels, const T* grad_TD, const T* hidden_PG, const ExpertRows<T>& out, T* in_PD,
           float* grad_gates) {
    pack_tokens(order_, row, panels, grad_TD, sizes_.dim, grad_panels_.get());
    activate(row, panels, hidden_PG + row * sizes_.hidden, out, grad_gates);
    project(panels, in_PD + row * sizes_.dim);
  }

 private:
  /// Gradients of the pre-activations, of the gates, and the active units times their gates.
  void activate(int64_t row, int64_t panels, const T* hidden, const ExpertRows<T>& out, float* grad_gates) {
    const int64_t width = sizes_.width, words = sizes_.dim / kPerWord<T>, in_expert = row - first_;
    T* const grad_hidden = out.hidden + in_expert;
    T* const active = out.active + in_expert;
    const Words weights{down_.get(), 1, width};
    __m512 gate_of[kPanels], dots[kPanels];
    for (int64_t j = 0; j < panels; ++j) {
      gate_of[j] = gates_of_rows(order_, gates_, row + j * kLanes);
      dots[j] = _mm512_setzero_ps();
    }
    for (int64_t f = 0; f < width; f += kRows) {
      multiply_block<T>(weights.row(f), grad_panels_.get(), words * kLanes, words, panels, block_.get());
      for (int64_t j = 0; j < panels; ++j) {
        const T* const stored = hidden + j * kLanes * sizes_.hidden;
        for (int64_t i = 0; i < kRows; i += 2) {
          __m512 grad_gate[2], grad_up[2];
          for (int64_t n = 0; n < 2; ++n) {
            const int64_t unit = f + i + n;
            const __m512 d = _mm512_load_ps(block_.get() + ((i + n) * panels + j) * kLanes);
            const SwigluGradient grads = swiglu_gradient(get(stored + unit * kLanes),
                                                         get(stored + (width + unit) * kLanes), d, gate_of[j], dots[j]);
            put(grads.active, active + unit * rows_ + j * kLanes);
            put(grad_gate[n] = grads.gate, grad_hidden + unit * rows_ + j * kLanes);
            put(grad_up[n] = grads.up, grad_hidden + (width + unit) * rows_ + j * kLanes);
          }
          const int64_t step = panels * kLanes;
          Word* const to = hidden_words_.get() + j * kLanes;
          put_words(grad_gate[0], grad_gate[1], to + (f + i) / kPerWord<T> * step, step, T{});
          put_words(grad_up[0], grad_up[1], to + (width + f + i) / kPerWord<T> * step, step, T{});
        }
      }
    }
    for (int64_t j = 0; j < panels; ++j) put_gate_gradients(order_, row + j * kLanes, dots[j], grad_gates);
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

/// dW_gate_up = dH' X of one expert.
template <class T>
void words_gate_up_gradient(const MoeInputs& in, const PairOrder& order, const ExpertRows<T>& rows,
                            const WeightRows& part, T* out) {
  const Sizes sizes(in);
  const int64_t first = order.first_row[part.expert], count = order.rows_of(part.expert), words = count / kPerWord<T>;
  const T* const hidden = rows.hidden + part.begin * count;
  const T* const x = in.x_TD.const_data_ptr<T>();
  const auto tokens = gathered(order, first, count, x, sizes.dim);
  const auto pack = [&](int64_t col, Word* panel) {
    const auto row = [&](int64_t r) { return tokens[r] == nullptr ? nullptr : tokens[r] + col; };
    pair_rows<T>(row, count, kLanes, panel, kLanes);
  };
  weight_rows<T>({as_words(hidden), words, 1}, words, part.count, sizes.dim, pack, out);
}

/// dW_down = dY' (gate A) of one expert.
template <class T>
void words_down_gradient(const MoeInputs& in, const PairOrder& order, const ExpertRows<T>& rows, const T* grad_TD,
                         const WeightRows& part, T* out) {
  const Sizes sizes(in);
  const int64_t first = order.first_row[part.expert], count = order.rows_of(part.expert), words = count / kPerWord<T>;
  const Scratch<Word> left(words * part.count);
  const auto row = [&](int64_t r) {
    const T* const from = gathered(order, first + r, grad_TD, sizes.dim);
    return from == nullptr ? nullptr : from + part.begin;
  };
  pair_rows<T>(row, count, part.count, left.get(), part.count);
  const auto pack = [&](int64_t col, Word* panel) {
    pack_rows([&](int i) { return as_words(rows.active + (col + i) * count); }, words, panel);
  };
  weight_rows<T>({left.get(), 1, part.count}, words, part.count, sizes.width, pack, out);
}

template <class T>
struct Avx512Variant {
  using Element = T;
  using Forward = ForwardStep<T>;
  using Backward = BackwardStep<T>;
  static int64_t step_panels(const Sizes&) { return kPanels; }

  static void gate_up_gradient(const MoeInputs& in, const PairOrder& order, const ExpertRows<T>& rows,
                               const WeightRows& part, T* out) {
    words_gate_up_gradient(in, order, rows, part, out);
  }
  static void down_gradient(const MoeInputs& in, const PairOrder& order, const ExpertRows<T>& rows, const T* grad_TD,
                            const WeightRows& part, T* out) {
    words_down_gradient(in, order, rows, grad_TD, part, out);
  }
};

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options

namespace coppice::kernels::cpu {
namespace {

MoeForward forward_of_any(const MoeInputs& in) {
  return with_scalar(in.x_TD, [&]<class T>(T) { return words_forward<Avx512Variant<T>>(in); });
}

MoeGradients backward_of_any(const MoeInputs& in, const MoeForward& from, const at::Tensor& grad_TD) {
  return with_scalar(in.x_TD, [&]<class T>(T) { return words_backward<Avx512Variant<T>>(in, from, grad_TD); });
}

}  // namespace

const detail::MoeVariant kExpertsByWords{forward_of_any, backward_of_any};

}  // namespace coppice::kernels::cpu
