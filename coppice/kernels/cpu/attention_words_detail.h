#pragma once

// Causal attention in words of 32 bits, forward; attention_words_backward_detail.h has the rest. The vector lanes are 32
// queries of one head, so the softmax runs along the keys and scores stay in the caches. A task is one key head with the
// queries that share it; the bits do not depend on threads.
//
// A unit multiplies (attention_avx512.cpp has one, attention_amx.cpp another):
//   Element       f32 or bf16
//   kRows         rows of the left matrix at a time
//   multiply(left, panels, words, out)   out [kRows][2][16] = kRows rows of `left` times two panels [words][16]
//   turn(row, rows, cols, out)           words along the rows of the matrix whose row r is row(r), as `turned` reads them
//   turned(data, first, words, cols)     the left matrix [cols x words] of those words, from word `first` on
// Include it after everything else but the unit's own header.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "coppice/kernels/attention_detail.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/cpu/words_avx512_detail.h"
#include "coppice/kernels/parallel.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

namespace coppice::kernels::cpu {
namespace {

using detail::AttentionForward;
using detail::AttentionGradients;
using detail::AttentionInputs;

inline constexpr int64_t kQueries = kLanes * kPanels;  ///< queries at a time

/// One head of a [B, S, heads, C] tensor in one sequence: row s is data + s * step.
template <class T>
struct Head {
  T* data;
  int64_t step;

  static Head of(const at::Tensor& x_BSHC, int64_t sequence, int64_t head) {
    const int64_t positions = x_BSHC.size(1), step = x_BSHC.size(2) * x_BSHC.size(3);
    auto* const data = static_cast<T*>(x_BSHC.data_ptr());
    return {data + sequence * positions * step + head * x_BSHC.size(3), step};
  }
  T* row(int64_t s) const { return data + s * step; }
  Words words() const { return {reinterpret_cast<const Word*>(data), step / kPerWord<std::remove_const_t<T>>, 1}; }
};

struct Shape {
  int64_t positions, heads, key_heads, dim;

  explicit Shape(const AttentionInputs& in)
      : positions(in.query_BSHC.size(1)),
        heads(in.query_BSHC.size(2)),
        key_heads(in.key_BSJC.size(2)),
        dim(in.query_BSHC.size(3)) {}
  int64_t group() const { return heads / key_heads; }
};

/// The range of keys of a block of queries.
struct Range {
  int64_t begin, end;

  template <class T>
  int64_t words() const {
    return (end - begin) / kPerWord<T>;
  }
};

/// Panels whose lanes are the 32 rows from `first` on.
template <class T>
void pack_queries(const Head<const T>& head, int64_t first, int64_t dim, Word* panels) {
  const int64_t words = dim / kPerWord<T>;
  for (int64_t j = 0; j < kPanels; ++j) {
    pack_rows([&](int i) { return reinterpret_cast<const Word*>(head.row(first + j * kLanes + i)); }, words,
              panels + j * words * kLanes);
  }
}

/// The keys that the queries of one sequence may see.
class Sight {
 public:
  Sight(const AttentionInputs& in, int64_t sequence)
      : start_(in.sight.documents.start_BS.defined() ? in.sight.documents.start_BS.const_data_ptr<int64_t>() +
                                                           sequence * in.sight.documents.start_BS.size(1)
                                                     : nullptr) {}

  /// The range of keys that any of the 32 queries from `first` on sees; its start is rounded down to a multiple of
  /// `rows`.
  Range keys(int64_t first, int64_t rows) const { return {start_ ? start_[first] / rows * rows : 0, first + kQueries}; }

  /// Where the documents of a panel's queries start.
  __m512i starts(int64_t first_of_panel) const {
    alignas(64) int32_t lanes[kLanes] = {};
    for (int64_t i = 0; start_ && i < kLanes; ++i) lanes[i] = static_cast<int32_t>(start_[first_of_panel + i]);
    return _mm512_load_si512(lanes);
  }

  /// The lanes that see `key`: queries at or after it whose document starts at or before it.
  static __mmask16 lanes(int64_t key, int64_t first_of_panel, __m512i starts) {
    const int64_t hidden = std::clamp<int64_t>(key - first_of_panel, 0, kLanes);
    return _mm512_mask_cmple_epi32_mask(static_cast<__mmask16>(0xffffu << hidden), starts,
                                        _mm512_set1_epi32(static_cast<int>(key)));
  }

 private:
  const int64_t* start_;  // null: no document starts inside
};

/// rows [dim x 32 lanes] = left [dim x words] times panels, each lane times `factor`; written as 32 rows of `to`.
template <class Unit, class T>
void project(Unit& unit, Words left, const Word* panels, int64_t words, int64_t dim, const __m512 (&factor)[kPanels],
             const Head<T>& to, int64_t first, float* block) {
  constexpr int64_t kBlock = std::max<int64_t>(kLanes, Unit::kRows);
  for (int64_t c = 0; c < dim; c += kBlock) {
    for (int64_t row = 0; row < kBlock; row += Unit::kRows) {
      unit.multiply(left.row(c + row), panels, words, block + row * kQueries);
    }
    for (int64_t row = 0; row < kBlock; row += kLanes) {
      for (int64_t j = 0; j < kPanels; ++j) {
        __m512i r[16];
        for (int64_t i = 0; i < 16; ++i) {
          const float* const from = block + ((row + i) * kPanels + j) * kLanes;
          r[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(from), factor[j]));
        }
        transpose(r);
        for (int64_t i = 0; i < 16; ++i) put(_mm512_castsi512_ps(r[i]), to.row(first + j * kLanes + i) + c + row);
      }
    }
  }
}

template <class Unit>
class ForwardHead {
  using T = typename Unit::Element;

 public:
  ForwardHead(const AttentionInputs& in, const AttentionForward& out, int64_t sequence, int64_t key_head)
      : shape_(in),
        in_(in),
        out_(out),
        sequence_(sequence),
        sight_(in, sequence),
        key_(Head<const T>::of(in.key_BSJC, sequence, key_head)),
        value_words_(shape_.positions / kPerWord<T> * shape_.dim),
        query_panels_(kQueries * shape_.dim / kPerWord<T>),
        weight_panels_(kQueries * shape_.positions / kPerWord<T>),
        scores_(kQueries * shape_.positions),
        block_(2 * std::max<int64_t>(kLanes, Unit::kRows) * kQueries) {
    const auto value = Head<const T>::of(in.value_BSJC, sequence, key_head);
    Unit::turn([&](int64_t s) { return value.row(s); }, shape_.positions, shape_.dim, value_words_.get());
  }

  void run(int64_t head) {
    const auto query = Head<const T>::of(in_.query_BSHC, sequence_, head);
    const auto out = Head<T>::of(out_.out_BSHC, sequence_, head);
    float* const log_sum =
        out_.log_sum.mutable_data_ptr<float>() + (sequence_ * shape_.heads + head) * shape_.positions;
    for (int64_t first = 0; first < shape_.positions; first += kQueries) {
      const Range keys = sight_.keys(first, Unit::kRows);
      pack_queries(query, first, shape_.dim, query_panels_.get());
      __m512 top[kPanels], sum[kPanels], factor[kPanels];
      score(first, keys, top);
      weigh(keys, top, sum);
      for (int64_t j = 0; j < kPanels; ++j) {
        factor[j] = _mm512_div_ps(_mm512_set1_ps(1.0f), sum[j]);
        alignas(64) float tops[kLanes], sums[kLanes];
        _mm512_store_ps(tops, top[j]);
        _mm512_store_ps(sums, sum[j]);
        for (int64_t i = 0; i < kLanes; ++i) log_sum[first + j * kLanes + i] = tops[i] + std::log(sums[i]);
      }
      const Words values =
          Unit::turned(value_words_.get(), keys.begin / kPerWord<T>, shape_.positions / kPerWord<T>, shape_.dim);
      project(unit_, values, weight_panels_.get(), keys.words<T>(), shape_.dim, factor, out, first, block_.get());
    }
  }

 private:
  void score(int64_t first, Range keys, __m512 (&top)[kPanels]) {
    const int64_t words = shape_.dim / kPerWord<T>;
    const __m512 scale = _mm512_set1_ps(static_cast<float>(in_.scale));
    const __m512 never = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (__m512& t : top) t = never;
    const __m512i starts[kPanels] = {sight_.starts(first), sight_.starts(first + kLanes)};
    for (int64_t key = keys.begin; key < keys.end; key += Unit::kRows) {
      unit_.multiply(key_.words().row(key), query_panels_.get(), words, block_.get());
      for (int64_t i = 0; i < Unit::kRows; ++i) {
        for (int64_t j = 0; j < kPanels; ++j) {
          const __mmask16 seen = Sight::lanes(key + i, first + j * kLanes, starts[j]);
          const __m512 s = _mm512_mul_ps(_mm512_load_ps(block_.get() + (i * kPanels + j) * kLanes), scale);
          const __m512 kept = _mm512_mask_mov_ps(never, seen, s);
          top[j] = _mm512_max_ps(kept, top[j]);
          _mm512_store_ps(scores_.get() + ((key + i) * kPanels + j) * kLanes, kept);
        }
      }
    }
  }

  /// exp(score - top) as panels, and their sums.
  void weigh(Range keys, const __m512 (&top)[kPanels], __m512 (&sum)[kPanels]) {
    for (int64_t j = 0; j < kPanels; ++j) {
      Word* const panel = weight_panels_.get() + j * keys.words<T>() * kLanes;
      sum[j] = _mm512_setzero_ps();
      for (int64_t key = keys.begin; key < keys.end; key += 2) {
        __m512 w[2];
        for (int64_t n = 0; n < 2; ++n) {
          const __m512 s = _mm512_load_ps(scores_.get() + ((key + n) * kPanels + j) * kLanes);
          w[n] = exp(_mm512_sub_ps(s, top[j]));
          const __m512 hidden = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
          w[n] = _mm512_mask_mov_ps(w[n], _mm512_cmp_ps_mask(s, hidden, _CMP_EQ_OQ), _mm512_setzero_ps());
          sum[j] = _mm512_add_ps(sum[j], w[n]);
        }
        put_words(w[0], w[1], panel + (key - keys.begin) / kPerWord<T> * kLanes, kLanes, T{});
      }
    }
  }

  const Shape shape_;
  const AttentionInputs& in_;
  const AttentionForward& out_;
  const int64_t sequence_;
  const Sight sight_;
  const Head<const T> key_;
  Scratch<Word> value_words_, query_panels_, weight_panels_;
  Scratch<float> scores_, block_;
  Unit unit_;
};

template <class Unit>
AttentionForward words_attention_forward(const AttentionInputs& in) {
  const Shape shape(in);
  const int64_t sequences = in.query_BSHC.size(0);
  const AttentionForward out{at::empty_like(in.query_BSHC), at::empty({sequences, shape.heads, shape.positions},
                                                                      in.query_BSHC.options().dtype(at::kFloat))};
  parallel_tasks(sequences * shape.key_heads, [&](int64_t task) {
    const int64_t key_head = task % shape.key_heads;
    ForwardHead<Unit> work(in, out, task / shape.key_heads, key_head);
    for (int64_t i = 0; i < shape.group(); ++i) work.run(key_head * shape.group() + i);
  });
  return out;
}

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options
