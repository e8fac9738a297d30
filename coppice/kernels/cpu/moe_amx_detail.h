#pragma once

// The MoE layer on bf16 tiles (tiles_detail.h). As moe_avx512.cpp with the same stored layout: hidden [R/16][G][16] for
// an expert with R rows; the lanes are tokens. Differences: 64 tokens are processed together, so that weights are read
// once for 64 tokens; and the left matrices of the backward pass are turned once a task, because a tile reads rows.
// Include it last.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "coppice/kernels/cpu/moe_words_detail.h"
#include "coppice/kernels/cpu/tiles_detail.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")

namespace coppice::kernels::cpu {
namespace {

inline constexpr int64_t kTilePanels = 4;  ///< 64 tokens
inline constexpr int64_t kBlockRows = 2 * kTileRows;

/// Words of a tensor's rows, filled up to whole tiles.
inline int64_t whole_tiles(int64_t words) { return (words + kTileWords - 1) / kTileWords * kTileWords; }

/// Calls f(panel, count) for one or two panels of `panels` at a time.
template <class F>
void for_each_panel_pair(int64_t panels, F f) {
  for (int64_t j = 0; j < panels; j += 2) f(j, std::min<int64_t>(2, panels - j));
}

/// The blocks [2][16][count][16] of dimensions d, d + 1, ... as rows of tokens.
inline void put_rows(const float* block, int64_t first, int64_t count, int64_t dim, int64_t d, at::BFloat16* out) {
  const int64_t step = count * kLanes;
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t j = 0; j < count; ++j) {
      at::BFloat16* const to = out + (first + j) * kLanes * dim + d + half * kTileRows;
      put_turned(block + half * kTileRows * step + j * kLanes, step, [&](int64_t i) { return to + i * dim; });
    }
  }
}

struct Projected {
  int64_t panels, dim;
};
/// Rows of tokens, `to.dim` numbers each: the panels, `words` words a token, times weights [dim][words].
template <class Tiles>
void project_tiles(Tiles& tiles, const Word* weights, const Word* token_panels, int64_t words, Projected to,
                   float* block, at::BFloat16* out) {
  const int64_t panel_step = words * kLanes;
  for (int64_t d = 0; d < to.dim; d += kBlockRows) {
    for_each_panel_pair(to.panels, [&](int64_t first, int64_t count) {
      multiply_tiles(tiles, weights + d * words, weights + (d + kTileRows) * words, words,
                     token_panels + first * panel_step, panel_step, words, count, block);
      put_rows(block, first, count, to.dim, d, out);
    });
  }
}

/// Forward of up to 64 tokens.
template <class Tiles>
class TileForward {
 public:
  TileForward(const MoeInputs& in, const PairOrder& order)
      : sizes_(in),
        order_(order),
        x_(in.x_TD.const_data_ptr<at::BFloat16>()),
        gate_up_(in.w_gate_up_EGD.const_data_ptr<at::BFloat16>()),
        down_(in.w_down_EDF.const_data_ptr<at::BFloat16>()),
        x_panels_(kTilePanels * kLanes * sizes_.dim / 2),
        active_panels_(kTilePanels * kLanes * sizes_.width / 2),
        block_(kBlockRows * 2 * kLanes) {}

  void run(int64_t expert, int64_t row, int64_t panels, at::BFloat16* hidden_PG, at::BFloat16* out_PD) {
    pack_tokens(order_, row, panels, x_, sizes_.dim, x_panels_.get());
    activate(expert, panels, hidden_PG + row * sizes_.hidden);
    project(expert, panels, out_PD + row * sizes_.dim);
  }

 private:
  void activate(int64_t expert, int64_t panels, at::BFloat16* hidden) {
    const int64_t words = sizes_.dim / 2, width = sizes_.width, panel_step = words * kLanes;
    const Word* const weights = as_words(gate_up_ + expert * sizes_.hidden * sizes_.dim);
    for (int64_t f = 0; f < width; f += kTileRows) {
      for_each_panel_pair(panels, [&](int64_t first, int64_t count) {
        multiply_tiles(tiles_, weights + f * words, weights + (width + f) * words, words,
                       x_panels_.get() + first * panel_step, panel_step, words, count, block_.get());
        for (int64_t j = 0; j < count; ++j) swiglu_block(first + j, j, count, f, hidden);
      });
    }
  }

  /// Units [f, f + 16) of one panel: stores their pre-activations, and the active units as words of a panel.
  void swiglu_block(int64_t panel, int64_t j, int64_t count, int64_t f, at::BFloat16* hidden) {
    const int64_t width = sizes_.width, step = count * kLanes;
    const float* const gate = block_.get() + j * kLanes;
    const float* const up = gate + kTileRows * step;
    at::BFloat16* const store = hidden + panel * kLanes * sizes_.hidden;
    Word* const active = active_panels_.get() + panel * width / 2 * kLanes;
    for (int64_t i = 0; i < kTileRows; i += 2) {
      __m512 a[2];
      for (int64_t n = 0; n < 2; ++n) {
        const __m512 g = rounded<at::BFloat16>(_mm512_load_ps(gate + (i + n) * step));
        const __m512 u = rounded<at::BFloat16>(_mm512_load_ps(up + (i + n) * step));
        put(g, store + (f + i + n) * kLanes);
        put(u, store + (width + f + i + n) * kLanes);
        a[n] = _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u);
      }
      put_words(a[0], a[1], active + (f + i) / 2 * kLanes, kLanes, at::BFloat16{});
    }
  }

  void project(int64_t expert, int64_t panels, at::BFloat16* out) {
    const Word* const weights = as_words(down_ + expert * sizes_.dim * sizes_.width);
    project_tiles(tiles_, weights, active_panels_.get(), sizes_.width / 2, {panels, sizes_.dim}, block_.get(), out);
  }

  const Sizes sizes_;
  const PairOrder& order_;
  const at::BFloat16 *x_, *gate_up_, *down_;
  Scratch<Word> x_panels_, active_panels_;
  Scratch<float> block_;
  Tiles tiles_;
};

/// Backward of the rows of one expert, up to 64 tokens at a time.
template <class Tiles>
class TileBackward {
 public:
  TileBackward(const MoeInputs& in, const PairOrder& order, int64_t expert)
      : sizes_(in),
        order_(order),
        first_(order.first_row[expert]),
        rows_(order.rows_of(expert)),
        gates_(in.gate_TK.const_data_ptr<float>()),
        down_(sizes_.width * sizes_.dim / 2),
        gate_up_(sizes_.dim * sizes_.hidden / 2),
        grad_panels_(kTilePanels * kLanes * sizes_.dim / 2),
        hidden_panels_(kTilePanels * kLanes * sizes_.hidden / 2),
        block_(kBlockRows * 2 * kLanes) {
    const at::BFloat16* const down = in.w_down_EDF.const_data_ptr<at::BFloat16>() + expert * sizes_.dim * sizes_.width;
    pair_columns([&](int64_t d) { return down + d * sizes_.width; }, sizes_.dim / 2, sizes_.width, down_.get());
    const at::BFloat16* const gate_up =
        in.w_gate_up_EGD.const_data_ptr<at::BFloat16>() + expert * sizes_.hidden * sizes_.dim;
    pair_columns([&](int64_t g) { return gate_up + g * sizes_.dim; }, sizes_.hidden / 2, sizes_.dim, gate_up_.get());
  }

  void run(int64_t row, int64_t panels, const at::BFloat16* grad_TD, const at::BFloat16* hidden_PG,
           const RowGradients& out, float* grad_gates) {
    pack_tokens(order_, row, panels, grad_TD, sizes_.dim, grad_panels_.get());
    for (int64_t j = 0; j < panels; ++j) {
      gate_of_[j] = gates_of_rows(order_, gates_, row + j * kLanes);
      dots_[j] = _mm512_setzero_ps();
    }
    activate(row, panels, hidden_PG + row * sizes_.hidden, out);
    for (int64_t j = 0; j < panels; ++j) put_gate_gradients(order_, row + j * kLanes, dots_[j], grad_gates);
    project(panels, out.in_PD.mutable_data_ptr<at::BFloat16>() + row * sizes_.dim);
  }

 private:
  void activate(int64_t row, int64_t panels, const at::BFloat16* hidden, const RowGradients& out) {
    const int64_t words = sizes_.dim / 2, panel_step = words * kLanes, in_expert = row - first_;
    at::BFloat16* const grad_hidden =
        out.hidden_GP.mutable_data_ptr<at::BFloat16>() + first_ * sizes_.hidden + in_expert;
    at::BFloat16* const active = out.active_FP.mutable_data_ptr<at::BFloat16>() + first_ * sizes_.width + in_expert;
    for (int64_t f = 0; f < sizes_.width; f += kBlockRows) {
      for_each_panel_pair(panels, [&](int64_t first, int64_t count) {
        multiply_tiles(tiles_, down_.get() + f * words, down_.get() + (f + kTileRows) * words, words,
                       grad_panels_.get() + first * panel_step, panel_step, words, count, block_.get());
        for (int64_t j = 0; j < count; ++j) {
          const int64_t lane = (first + j) * kLanes;
          swiglu_gradients(first + j, block_.get() + j * kLanes, count * kLanes, f, hidden + lane * sizes_.hidden,
                           active + lane, grad_hidden + lane);
        }
      });
    }
  }

  /// Units [f, f + 32) of one panel.
  void swiglu_gradients(int64_t panel, const float* block, int64_t step, int64_t f, const at::BFloat16* stored,
                        at::BFloat16* active, at::BFloat16* grad_hidden) {
    const int64_t width = sizes_.width;
    Word* const to = hidden_panels_.get() + panel * sizes_.hidden / 2 * kLanes;
    for (int64_t i = 0; i < kBlockRows; i += 2) {
      __m512 grad_gate[2], grad_up[2];
      for (int64_t n = 0; n < 2; ++n) {
        const int64_t unit = f + i + n;
        const __m512 d = _mm512_load_ps(block + (i + n) * step);
        const SwigluGradient grads = swiglu_gradient(get(stored + unit * kLanes), get(stored + (width + unit) * kLanes),
                                                     d, gate_of_[panel], dots_[panel]);
        put(grads.active, active + unit * rows_);
        put(grad_gate[n] = grads.gate, grad_hidden + unit * rows_);
        put(grad_up[n] = grads.up, grad_hidden + (width + unit) * rows_);
      }
      put_words(grad_gate[0], grad_gate[1], to + (f + i) / 2 * kLanes, kLanes, at::BFloat16{});
      put_words(grad_up[0], grad_up[1], to + (width + f + i) / 2 * kLanes, kLanes, at::BFloat16{});
    }
  }

  void project(int64_t panels, at::BFloat16* out) {
    project_tiles(tiles_, gate_up_.get(), hidden_panels_.get(), sizes_.hidden / 2, {panels, sizes_.dim}, block_.get(),
                  out);
  }

  const Sizes sizes_;
  const PairOrder& order_;
  const int64_t first_, rows_;
  const float* gates_;
  Scratch<Word> down_, gate_up_;  // [F][D words]; [D][G words]
  Scratch<Word> grad_panels_, hidden_panels_;
  Scratch<float> block_;
  __m512 gate_of_[kTilePanels], dots_[kTilePanels];
  Tiles tiles_;
};

/// Rows [begin, begin + count) of a weight's gradient: left rows `row_step` words apart, times panels that `pack` makes
/// of 16 columns. `words` is filled up to whole tiles: the panels have zeros there, so what the left rows have counts not.
template <class Tiles, class Pack>
void tile_weight_rows(const Word* left, int64_t row_step, int64_t words, int64_t count, int64_t cols, Pack pack,
                      at::BFloat16* out) {
  Tiles tiles;
  const Scratch<Word> panels(2 * words * kLanes);
  const Scratch<float> block(kBlockRows * 2 * kLanes);
  for (int64_t c = 0; c < cols; c += 2 * kLanes) {
    for (int64_t j = 0; j < 2; ++j) pack(c + j * kLanes, panels.get() + j * words * kLanes);
    for (int64_t row = 0; row < count; row += kBlockRows) {
      const Word* const first = left + row * row_step;
      multiply_tiles(tiles, first, first + kTileRows * row_step, row_step, panels.get(), words * kLanes, words, 2,
                     block.get());
      for (int64_t i = 0; i < kBlockRows; ++i) {
        for (int64_t j = 0; j < 2; ++j) {
          put(_mm512_load_ps(block.get() + (i * 2 + j) * kLanes), out + (row + i) * cols + c + j * kLanes);
        }
      }
    }
  }
}

/// dW_gate_up = dH' X of one expert.
template <class Tiles>
void tile_gate_up_gradient(const MoeInputs& in, const PairOrder& order, const RowGradients& rows,
                           const WeightRows& part, at::BFloat16* out) {
  const Sizes sizes(in);
  const int64_t first = order.first_row[part.expert], count = order.rows_of(part.expert);
  const at::BFloat16* const hidden =
      rows.hidden_GP.const_data_ptr<at::BFloat16>() + first * sizes.hidden + part.begin * count;
  const at::BFloat16* const x = in.x_TD.const_data_ptr<at::BFloat16>();
  const int64_t words = whole_tiles(count / 2);
  const auto pack = [&](int64_t col, Word* panel) {
    const auto row = [&](int64_t r) {
      const at::BFloat16* const from = r < count ? gathered(order, first + r, x, sizes.dim) : nullptr;
      return from == nullptr ? nullptr : from + col;
    };
    pair_rows<at::BFloat16>(row, 2 * words, kLanes, panel, kLanes);
  };
  tile_weight_rows<Tiles>(as_words(hidden), count / 2, words, part.count, sizes.dim, pack, out);
}

/// dW_down = dY' (gate A) of one expert.
template <class Tiles>
void tile_down_gradient(const MoeInputs& in, const PairOrder& order, const RowGradients& rows,
                        const at::BFloat16* grad_TD, const WeightRows& part, at::BFloat16* out) {
  const Sizes sizes(in);
  const int64_t first = order.first_row[part.expert], count = order.rows_of(part.expert);
  const int64_t words = whole_tiles(count / 2);
  const Scratch<Word> left(words * part.count);
  const auto row = [&](int64_t r) {
    const at::BFloat16* const from = r < count ? gathered(order, first + r, grad_TD, sizes.dim) : nullptr;
    return from == nullptr ? nullptr : from + part.begin;
  };
  pair_columns(row, words, part.count, left.get());
  const at::BFloat16* const active = rows.active_FP.const_data_ptr<at::BFloat16>() + first * sizes.width;
  const auto pack = [&](int64_t col, Word* panel) {
    pack_rows([&](int i) { return as_words(active + (col + i) * count); }, count / 2, panel);
    std::fill(panel + count / 2 * kLanes, panel + words * kLanes, Word{0});
  };
  tile_weight_rows<Tiles>(left.get(), words, words, part.count, sizes.width, pack, out);
}

template <class Tiles>
struct TileVariant {
  using Element = at::BFloat16;
  using Forward = TileForward<Tiles>;
  using Backward = TileBackward<Tiles>;
  static constexpr int64_t kStepPanels = kTilePanels;

  static void gate_up_gradient(const MoeInputs& in, const PairOrder& order, const RowGradients& rows,
                               const WeightRows& part, at::BFloat16* out) {
    tile_gate_up_gradient<Tiles>(in, order, rows, part, out);
  }
  static void down_gradient(const MoeInputs& in, const PairOrder& order, const RowGradients& rows,
                            const at::BFloat16* grad_TD, const WeightRows& part, at::BFloat16* out) {
    tile_down_gradient<Tiles>(in, order, rows, grad_TD, part, out);
  }
};

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options
