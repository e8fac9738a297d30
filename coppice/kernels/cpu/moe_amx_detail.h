#pragma once

// The MoE layer on bf16 tiles (tiles_detail.h). As moe_avx512.cpp with the same stored layout: hidden [R/16][G][16] for
// an expert with R rows; the lanes are tokens. Differences: a block of weights meets all tokens of a task before the next
// one is read, so that weights pass through the caches once; and the left matrices of the backward pass are turned once
// a task, because a tile reads rows.
// Include it last.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "coppice/kernels/cpu/moe_words_detail.h"
#include "coppice/kernels/cpu/tiles_detail.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")

namespace coppice::kernels::cpu {
namespace {

inline constexpr int64_t kBlockRows = 2 * kTileRows;

/// Words of a tensor's rows, filled up to whole tiles.
inline int64_t whole_tiles(int64_t words) { return (words + kTileWords - 1) / kTileWords * kTileWords; }

/// Panels that are processed together: as many tokens as a task has, if their numbers leave room in the L2 cache.
inline int64_t step_panels_of(const Sizes& sizes) {
  constexpr int64_t kL2Share = 1 << 20;
  const int64_t panel_bytes = kLanes * kWordBytes * std::max(sizes.dim, sizes.hidden) / kPerWord<at::BFloat16>;
  return std::clamp<int64_t>(kL2Share / panel_bytes / 2 * 2, 4, kTaskRows / kLanes);
}

/// Calls f(panel, count) for one or two panels of `panels` at a time.
template <class F>
void for_each_panel_pair(int64_t panels, F f) {
  for (int64_t j = 0; j < panels; j += 2) f(j, std::min<int64_t>(2, panels - j));
}

/// Rows of tokens, `dim` numbers each: the panels, `words` words a token, times weights whose block of 16 rows is
/// weights(block).
template <class Tiles, class Weights>
void project_tiles(Tiles& tiles, const Weights& weights, const Word* token_panels, int64_t words, int64_t panels,
                   int64_t dim, float* block, at::BFloat16* out) {
  const int64_t panel_step = words * kLanes;
  for (int64_t d = 0; d < dim; d += kBlockRows) {
    for_each_panel_pair(panels, [&](int64_t first, int64_t count) {
      multiply_tiles(tiles, weights(d / kTileRows), weights(d / kTileRows + 1), token_panels + first * panel_step,
                     panel_step, words, count, block);
      put_lanes(block, count, [&](int64_t lane) { return out + (first * kLanes + lane) * dim + d; });
    });
  }
}

/// Forward of tokens of one expert.
template <class Tiles>
class TileForward {
 public:
  TileForward(const MoeInputs& in, const PairOrder& order, int64_t most_panels)
      : sizes_(in),
        order_(order),
        x_(in.x_TD.const_data_ptr<at::BFloat16>()),
        gate_up_(in.w_gate_up_EGD.const_data_ptr<at::BFloat16>()),
        down_(in.w_down_EDF.const_data_ptr<at::BFloat16>()),
        x_panels_(most_panels * kLanes * sizes_.dim / 2),
        active_panels_(most_panels * kLanes * sizes_.width / 2),
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
        multiply_tiles(tiles_, TileRows::in_memory(weights + f * words, words),
                       TileRows::in_memory(weights + (width + f) * words, words), x_panels_.get() + first * panel_step,
                       panel_step, words, count, block_.get());
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
      const auto kept = [&](const float* rows, at::BFloat16* to) {
        const __m512i pair = bf16_pair(_mm512_load_ps(rows + i * step), _mm512_load_ps(rows + (i + 1) * step));
        _mm512_storeu_si512(to + i * kLanes, pair);
        return interleaved(pair);
      };
      const __m512i g = kept(gate, store + f * kLanes), u = kept(up, store + (width + f) * kLanes);
      put_words(swiglu(first_of(g), first_of(u)), swiglu(second_of(g), second_of(u)), active + (f + i) / 2 * kLanes,
                kLanes, at::BFloat16{});
    }
  }

  static __m512 swiglu(__m512 g, __m512 u) { return _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u); }

  void project(int64_t expert, int64_t panels, at::BFloat16* out) {
    const int64_t words = sizes_.width / 2;
    const Word* const weights = as_words(down_ + expert * sizes_.dim * sizes_.width);
    const auto rows = [&](int64_t block) { return TileRows::in_memory(weights + block * kTileRows * words, words); };
    project_tiles(tiles_, rows, active_panels_.get(), words, panels, sizes_.dim, block_.get(), out);
  }

  const Sizes sizes_;
  const PairOrder& order_;
  const at::BFloat16 *x_, *gate_up_, *down_;
  Scratch<Word> x_panels_, active_panels_;
  Scratch<float> block_;
  Tiles tiles_;
};

/// Backward of rows of one expert.
template <class Tiles>
class TileBackward {
 public:
  TileBackward(const MoeInputs& in, const PairOrder& order, int64_t expert, int64_t most_panels)
      : sizes_(in),
        order_(order),
        first_(order.first_row[expert]),
        rows_(order.rows_of(expert)),
        gates_(in.gate_TK.const_data_ptr<float>()),
        down_(sizes_.width * sizes_.dim / 2),
        gate_up_(sizes_.dim * sizes_.hidden / 2),
        grad_panels_(most_panels * kLanes * sizes_.dim / 2),
        hidden_panels_(most_panels * kLanes * sizes_.hidden / 2),
        gate_of_(most_panels * kLanes),
        dots_(most_panels * kLanes),
        block_(kBlockRows * 2 * kLanes) {
    const at::BFloat16* const down = in.w_down_EDF.const_data_ptr<at::BFloat16>() + expert * sizes_.dim * sizes_.width;
    const auto tiles = ColumnLayout::tiles();
    pack_columns([&](int64_t d) { return down + d * sizes_.width; }, sizes_.dim / 2, sizes_.width, tiles, down_.get());
    const at::BFloat16* const gate_up =
        in.w_gate_up_EGD.const_data_ptr<at::BFloat16>() + expert * sizes_.hidden * sizes_.dim;
    pack_columns([&](int64_t g) { return gate_up + g * sizes_.dim; }, sizes_.hidden / 2, sizes_.dim, tiles,
                 gate_up_.get());
  }

  void run(int64_t row, int64_t panels, const at::BFloat16* grad_TD, const at::BFloat16* hidden_PG,
           const ExpertRows<at::BFloat16>& out, at::BFloat16* in_PD, float* grad_gates) {
    pack_tokens(order_, row, panels, grad_TD, sizes_.dim, grad_panels_.get());
    for (int64_t j = 0; j < panels; ++j) {
      _mm512_store_ps(gate_of_.get() + j * kLanes, gates_of_rows(order_, gates_, row + j * kLanes));
      _mm512_store_ps(dots_.get() + j * kLanes, _mm512_setzero_ps());
    }
    activate(row, panels, hidden_PG + row * sizes_.hidden, out);
    for (int64_t j = 0; j < panels; ++j) {
      put_gate_gradients(order_, row + j * kLanes, _mm512_load_ps(dots_.get() + j * kLanes), grad_gates);
    }
    const int64_t words = sizes_.hidden / 2;
    const auto weights = [&](int64_t block) { return TileRows::packed(gate_up_.get(), block, words); };
    project_tiles(tiles_, weights, hidden_panels_.get(), words, panels, sizes_.dim, block_.get(),
                  in_PD + row * sizes_.dim);
  }

 private:
  void activate(int64_t row, int64_t panels, const at::BFloat16* hidden, const ExpertRows<at::BFloat16>& out) {
    const int64_t words = sizes_.dim / 2, panel_step = words * kLanes, in_expert = row - first_;
    at::BFloat16* const grad_hidden = out.hidden + in_expert;
    at::BFloat16* const active = out.active + in_expert;
    for (int64_t f = 0; f < sizes_.width; f += kBlockRows) {
      for_each_panel_pair(panels, [&](int64_t first, int64_t count) {
        multiply_tiles(tiles_, TileRows::packed(down_.get(), f / kTileRows, words),
                       TileRows::packed(down_.get(), f / kTileRows + 1, words), grad_panels_.get() + first * panel_step,
                       panel_step, words, count, block_.get());
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
    const __m512 gate = _mm512_load_ps(gate_of_.get() + panel * kLanes);
    __m512 dots = _mm512_load_ps(dots_.get() + panel * kLanes);
    Word* const to = hidden_panels_.get() + panel * sizes_.hidden / 2 * kLanes;
    for (int64_t i = 0; i < kBlockRows; i += 2) {
      const auto kept = [&](int64_t unit) { return interleaved(_mm512_loadu_si512(stored + unit * kLanes)); };
      const __m512i g = kept(f + i), u = kept(width + f + i);
      const SwigluGradient a = swiglu_gradient(first_of(g), first_of(u), _mm512_load_ps(block + i * step), gate, dots);
      const SwigluGradient b =
          swiglu_gradient(second_of(g), second_of(u), _mm512_load_ps(block + (i + 1) * step), gate, dots);
      const auto put_pair = [&](__m512 first, __m512 second, at::BFloat16* rows) {
        const __m512i pair = bf16_pair(first, second);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows), _mm512_castsi512_si256(pair));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + rows_), _mm512_extracti64x4_epi64(pair, 1));
        return interleaved(pair);
      };
      put_pair(a.active, b.active, active + (f + i) * rows_);
      const int64_t word = (f + i) / 2 * kLanes;
      _mm512_store_si512(to + word, put_pair(a.gate, b.gate, grad_hidden + (f + i) * rows_));
      _mm512_store_si512(to + width / 2 * kLanes + word, put_pair(a.up, b.up, grad_hidden + (width + f + i) * rows_));
    }
    _mm512_store_ps(dots_.get() + panel * kLanes, dots);
  }

  const Sizes sizes_;
  const PairOrder& order_;
  const int64_t first_, rows_;
  const float* gates_;
  Scratch<Word> down_, gate_up_;  // tiles of [F][D words] and of [D][G words]
  Scratch<Word> grad_panels_, hidden_panels_;
  Scratch<float> gate_of_, dots_, block_;
  Tiles tiles_;
};

/// Some rows of a weight's gradient: left rows, whose block of 16 is left(block), times panels of 16 columns each.
/// `words` is filled up to whole tiles: the panels have zeros there, so what the left rows have counts not.
template <class Tiles, class Left>
void tile_weight_rows(const Left& left, int64_t count, const Word* panels, int64_t words, int64_t cols,
                      at::BFloat16* out) {
  Tiles tiles;
  const Scratch<float> block(kBlockRows * 2 * kLanes);
  for (int64_t row = 0; row < count; row += kBlockRows) {
    for (int64_t c = 0; c < cols; c += 2 * kLanes) {
      for (int64_t i = 0; i < kBlockRows; ++i) __builtin_prefetch(out + (row + i) * cols + c, 1);
      multiply_tiles(tiles, left(row / kTileRows), left(row / kTileRows + 1), panels + c * words, words * kLanes, words,
                     2, block.get());
      for (int64_t i = 0; i < kBlockRows; ++i) {
        const float* const from = block.get() + i * 2 * kLanes;
        _mm512_storeu_si512(out + (row + i) * cols + c, bf16_pair(_mm512_load_ps(from), _mm512_load_ps(from + kLanes)));
      }
    }
  }
}

/// dW_gate_up = dH' X of one expert.
template <class Tiles>
void tile_gate_up_gradient(const MoeInputs& in, const PairOrder& order, const ExpertRows<at::BFloat16>& rows,
                           const WeightRows& part, at::BFloat16* out) {
  const Sizes sizes(in);
  const int64_t first = order.first_row[part.expert], count = order.rows_of(part.expert);
  const Word* const hidden = as_words(rows.hidden);
  const int64_t words = whole_tiles(count / 2);
  const Scratch<Word> panels(words * sizes.dim);
  auto tokens = gathered(order, first, count, in.x_TD.const_data_ptr<at::BFloat16>(), sizes.dim);
  tokens.resize(static_cast<size_t>(2 * words), nullptr);
  for (int64_t c = 0; c < sizes.dim; c += kLanes) {
    const auto row = [&](int64_t r) { return tokens[r] == nullptr ? nullptr : tokens[r] + c; };
    pair_rows<at::BFloat16>(row, 2 * words, kLanes, panels.get() + c * words, kLanes);
  }
  const auto left = [&](int64_t block) {
    return TileRows::in_memory(hidden + (part.begin + block * kTileRows) * (count / 2), count / 2);
  };
  tile_weight_rows<Tiles>(left, part.count, panels.get(), words, sizes.dim, out);
}

/// dW_down = dY' (gate A) of one expert.
template <class Tiles>
void tile_down_gradient(const MoeInputs& in, const PairOrder& order, const ExpertRows<at::BFloat16>& rows,
                        const at::BFloat16* grad_TD, const WeightRows& part, at::BFloat16* out) {
  const Sizes sizes(in);
  const int64_t first = order.first_row[part.expert], count = order.rows_of(part.expert);
  const int64_t words = whole_tiles(count / 2);
  const Scratch<Word> turned(words * part.count), panels(words * sizes.width);
  auto tokens = gathered(order, first, count, grad_TD, sizes.dim);
  tokens.resize(static_cast<size_t>(2 * words), nullptr);
  const auto row = [&](int64_t r) { return tokens[r] == nullptr ? nullptr : tokens[r] + part.begin; };
  pack_columns(row, words, part.count, ColumnLayout::tiles(), turned.get());
  const Word* const active = as_words(rows.active);
  for (int64_t c = 0; c < sizes.width; c += kLanes) {
    Word* const panel = panels.get() + c * words;
    pack_rows([&](int i) { return active + (c + i) * (count / 2); }, count / 2, panel);
    std::fill(panel + count / 2 * kLanes, panel + words * kLanes, Word{0});
  }
  const auto left = [&](int64_t block) { return TileRows::packed(turned.get(), block, words); };
  tile_weight_rows<Tiles>(left, part.count, panels.get(), words, sizes.width, out);
}

template <class Tiles>
struct TileVariant {
  using Element = at::BFloat16;
  using Forward = TileForward<Tiles>;
  using Backward = TileBackward<Tiles>;
  static int64_t step_panels(const Sizes& sizes) { return step_panels_of(sizes); }

  static void gate_up_gradient(const MoeInputs& in, const PairOrder& order, const ExpertRows<at::BFloat16>& rows,
                               const WeightRows& part, at::BFloat16* out) {
    tile_gate_up_gradient<Tiles>(in, order, rows, part, out);
  }
  static void down_gradient(const MoeInputs& in, const PairOrder& order, const ExpertRows<at::BFloat16>& rows,
                            const at::BFloat16* grad_TD, const WeightRows& part, at::BFloat16* out) {
    tile_down_gradient<Tiles>(in, order, rows, grad_TD, part, out);
  }
};

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options
