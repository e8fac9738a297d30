// Causal attention on processors with AVX-512. The vector lanes are 32 queries of one head, so the softmax runs along
// the keys and scores stay in the caches. A task is one key head with the queries that share it; the bits do not depend
// on threads.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <cmath>
#include <limits>

#include "coppice/base/lane_sum.h"
#include "coppice/kernels/attention_detail.h"
#include "coppice/kernels/cpu/processor_detail.h"
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

constexpr int64_t kQueries = kLanes * kPanels;  // queries at a time

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
      : start_(in.start_BS.defined() ? in.start_BS.const_data_ptr<int64_t>() + sequence * in.start_BS.size(1)
                                     : nullptr) {}

  /// The range of keys that any of the 32 queries from `first` on sees; its start is rounded down to a multiple of
  /// kRows.
  Range keys(int64_t first) const { return {start_ ? start_[first] / kRows * kRows : 0, first + kQueries}; }

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
template <class T>
void project(Words left, const Word* panels, int64_t words, int64_t dim, const __m512 (&factor)[kPanels],
             const Head<T>& to, int64_t first, float* block) {
  for (int64_t c = 0; c < dim; c += 2 * kRows) {
    for (int64_t half = 0; half < 2; ++half) {
      multiply<T, kRows, kPanels>(left.row(c + half * kRows), panels, words * kLanes, words,
                                  block + half * kRows * kQueries);
    }
    for (int64_t j = 0; j < kPanels; ++j) {
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i) {
        r[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(block + (i * kPanels + j) * kLanes), factor[j]));
      }
      transpose(r);
      for (int64_t i = 0; i < 16; ++i) put(_mm512_castsi512_ps(r[i]), to.row(first + j * kLanes + i) + c);
    }
  }
}

template <class T>
class ForwardHead {
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
        block_(2 * kRows * kQueries) {
    const auto value = Head<const T>::of(in.value_BSJC, sequence, key_head);
    pair_rows<T>([&](int64_t s) { return value.row(s); }, shape_.positions, shape_.dim, value_words_.get(), shape_.dim);
  }

  void run(int64_t head) {
    const auto query = Head<const T>::of(in_.query_BSHC, sequence_, head);
    const auto out = Head<T>::of(out_.out_BSHC, sequence_, head);
    float* const log_sum =
        out_.log_sum_BHS.mutable_data_ptr<float>() + (sequence_ * shape_.heads + head) * shape_.positions;
    for (int64_t first = 0; first < shape_.positions; first += kQueries) {
      const Range keys = sight_.keys(first);
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
      const Words values{value_words_.get() + keys.begin / kPerWord<T> * shape_.dim, 1, shape_.dim};
      project<T>(values, weight_panels_.get(), keys.words<T>(), shape_.dim, factor, out, first, block_.get());
    }
  }

 private:
  void score(int64_t first, Range keys, __m512 (&top)[kPanels]) {
    const int64_t words = shape_.dim / kPerWord<T>;
    const __m512 scale = _mm512_set1_ps(static_cast<float>(in_.scale));
    const __m512 never = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (__m512& t : top) t = never;
    const __m512i starts[kPanels] = {sight_.starts(first), sight_.starts(first + kLanes)};
    for (int64_t key = keys.begin; key < keys.end; key += kRows) {
      multiply<T, kRows, kPanels>(key_.words().row(key), query_panels_.get(), words * kLanes, words, block_.get());
      for (int64_t i = 0; i < kRows; ++i) {
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
};

template <class T>
class BackwardHead {
 public:
  BackwardHead(const AttentionInputs& in, const AttentionForward& forward, const at::Tensor& grad_BSHC,
               const AttentionGradients& out, int64_t sequence, int64_t key_head)
      : shape_(in),
        in_(in),
        forward_(forward),
        grad_BSHC_(grad_BSHC),
        out_(out),
        sequence_(sequence),
        key_head_(key_head),
        sight_(in, sequence),
        key_(Head<const T>::of(in.key_BSJC, sequence, key_head)),
        value_(Head<const T>::of(in.value_BSJC, sequence, key_head)),
        key_words_(shape_.positions / kPerWord<T> * shape_.dim),
        query_panels_(kQueries * shape_.dim / kPerWord<T>),
        grad_panels_(kQueries * shape_.dim / kPerWord<T>),
        query_columns_(kQueries * shape_.dim / kPerWord<T>),
        grad_columns_(kQueries * shape_.dim / kPerWord<T>),
        slope_panels_(kQueries * shape_.positions / kPerWord<T>),
        weights_(kQueries * shape_.positions),
        slopes_(kQueries * shape_.positions),
        grad_key_(shape_.positions * shape_.dim),
        grad_value_(shape_.positions * shape_.dim),
        block_(2 * kRows * kQueries) {
    pair_rows<T>([&](int64_t s) { return key_.row(s); }, shape_.positions, shape_.dim, key_words_.get(), shape_.dim);
    std::fill_n(grad_key_.get(), shape_.positions * shape_.dim, 0.0f);
    std::fill_n(grad_value_.get(), shape_.positions * shape_.dim, 0.0f);
  }

  void run() {
    for (int64_t head = key_head_ * shape_.group(); head < (key_head_ + 1) * shape_.group(); ++head) {
      for (int64_t first = 0; first < shape_.positions; first += kQueries) run_queries(head, first);
    }
    store_rows(grad_key_.get(), Head<T>::of(out_.key_BSJC, sequence_, key_head_));
    store_rows(grad_value_.get(), Head<T>::of(out_.value_BSJC, sequence_, key_head_));
  }

 private:
  void run_queries(int64_t head, int64_t first) {
    const int64_t dim = shape_.dim;
    const Range keys = sight_.keys(first);
    const auto query = Head<const T>::of(in_.query_BSHC, sequence_, head);
    const auto grad = Head<const T>::of(grad_BSHC_, sequence_, head);
    pack_queries(query, first, dim, query_panels_.get());
    pack_queries(grad, first, dim, grad_panels_.get());
    pack_columns(query, first, query_columns_.get());
    pack_columns(grad, first, grad_columns_.get());
    slope(head, first, keys, grad);
    const __m512 one = _mm512_set1_ps(1.0f);
    const Words key_words{key_words_.get() + keys.begin / kPerWord<T> * dim, 1, dim};
    project<T>(key_words, slope_panels_.get(), keys.words<T>(), dim, {one, one},
               Head<T>::of(out_.query_BSHC, sequence_, head), first, block_.get());
    add_rows(weights_.get(), grad_columns_.get(), keys, grad_value_.get());
    add_rows(slopes_.get(), query_columns_.get(), keys, grad_key_.get());
  }

  /// Panels of 16 columns, words along the 32 rows.
  void pack_columns(const Head<const T>& head, int64_t first, Word* panels) const {
    for (int64_t c = 0; c < shape_.dim; c += kLanes) {
      pair_rows<T>([&](int64_t s) { return head.row(first + s) + c; }, kQueries, kLanes,
                   panels + c * kQueries / kPerWord<T>, kLanes);
    }
  }

  /// Probabilities and gradients of the scores of 32 queries: [keys][32], the latter as panels too.
  void slope(int64_t head, int64_t first, Range keys, const Head<const T>& grad) {
    const int64_t dim = shape_.dim, words = dim / kPerWord<T>;
    const auto out = Head<const T>::of(forward_.out_BSHC, sequence_, head);
    const float* const log_sum =
        forward_.log_sum_BHS.const_data_ptr<float>() + (sequence_ * shape_.heads + head) * shape_.positions + first;
    alignas(64) float dot_of[kQueries];
    for (int64_t i = 0; i < kQueries; ++i) {
      const T *o = out.row(first + i), *g = grad.row(first + i);
      dot_of[i] = lane_sum<float>(dim, [&](int64_t c) { return load(o[c]) * load(g[c]); });
    }
    const __m512 scale = _mm512_set1_ps(static_cast<float>(in_.scale));
    float* const scores = block_.get();
    float* const grads = scores + kRows * kQueries;
    const __m512i starts[kPanels] = {sight_.starts(first), sight_.starts(first + kLanes)};
    for (int64_t key = keys.begin; key < keys.end; key += kRows) {
      multiply<T, kRows, kPanels>(key_.words().row(key), query_panels_.get(), words * kLanes, words, scores);
      multiply<T, kRows, kPanels>(value_.words().row(key), grad_panels_.get(), words * kLanes, words, grads);
      for (int64_t j = 0; j < kPanels; ++j) {
        const __m512 total = _mm512_loadu_ps(log_sum + j * kLanes), dot = _mm512_load_ps(dot_of + j * kLanes);
        Word* const panel = slope_panels_.get() + j * keys.words<T>() * kLanes;
        for (int64_t i = 0; i < kRows; i += 2) {
          __m512 ds[2];
          for (int64_t n = 0; n < 2; ++n) {
            const int64_t at = ((i + n) * kPanels + j) * kLanes, to = ((key + i + n) * kPanels + j) * kLanes;
            const __m512 p = _mm512_maskz_mov_ps(Sight::lanes(key + i + n, first + j * kLanes, starts[j]),
                                                 exp(_mm512_fmsub_ps(_mm512_load_ps(scores + at), scale, total)));
            ds[n] = _mm512_mul_ps(_mm512_mul_ps(p, _mm512_sub_ps(_mm512_load_ps(grads + at), dot)), scale);
            put(p, weights_.get() + to);
            put(ds[n], slopes_.get() + to);
          }
          put_words(ds[0], ds[1], panel + (key - keys.begin + i) / kPerWord<T> * kLanes, kLanes, T{});
        }
      }
    }
  }

  /// sum [keys x dim] += left [keys x 32] times columns [32 x dim].
  void add_rows(const T* left, const Word* columns, Range keys, float* sum) {
    const int64_t words = kQueries / kPerWord<T>;
    const Words rows{reinterpret_cast<const Word*>(left), words, 1};
    for (int64_t key = keys.begin; key < keys.end; key += kRows) {
      for (int64_t c = 0; c < shape_.dim; c += kPanels * kLanes) {
        multiply<T, kRows, kPanels>(rows.row(key), columns + c * words, words * kLanes, words, block_.get());
        for (int64_t i = 0; i < kRows; ++i) {
          for (int64_t j = 0; j < kPanels; ++j) {
            float* const to = sum + (key + i) * shape_.dim + c + j * kLanes;
            _mm512_store_ps(
                to, _mm512_add_ps(_mm512_load_ps(to), _mm512_load_ps(block_.get() + (i * kPanels + j) * kLanes)));
          }
        }
      }
    }
  }

  void store_rows(const float* sum, const Head<T>& to) const {
    for (int64_t s = 0; s < shape_.positions; ++s) {
      for (int64_t c = 0; c < shape_.dim; c += kLanes) put(_mm512_load_ps(sum + s * shape_.dim + c), to.row(s) + c);
    }
  }

  const Shape shape_;
  const AttentionInputs& in_;
  const AttentionForward& forward_;
  const at::Tensor& grad_BSHC_;
  const AttentionGradients& out_;
  const int64_t sequence_, key_head_;
  const Sight sight_;
  const Head<const T> key_, value_;
  Scratch<Word> key_words_, query_panels_, grad_panels_, query_columns_, grad_columns_, slope_panels_;
  Scratch<T> weights_, slopes_;
  Scratch<float> grad_key_, grad_value_, block_;
};

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options

namespace coppice::kernels::cpu {

bool has_attention_for(const AttentionInputs& in) {
  const Shape shape(in);
  const AttentionShape of{.positions = in.query_BSHC.numel() > 0 ? shape.positions : 0,
                          .heads = shape.heads,
                          .key_heads = shape.key_heads,
                          .dim = shape.dim};
  return pick_attention(this_processor(), of, in.query_BSHC.scalar_type()) == Path::kWords;
}

AttentionForward attention_forward(const AttentionInputs& in) {
  const Shape shape(in);
  const int64_t sequences = in.query_BSHC.size(0);
  const AttentionForward out{at::empty_like(in.query_BSHC), at::empty({sequences, shape.heads, shape.positions},
                                                                      in.query_BSHC.options().dtype(at::kFloat))};
  with_scalar(in.query_BSHC, [&]<class T>(T) {
    parallel_tasks(sequences * shape.key_heads, [&](int64_t task) {
      const int64_t key_head = task % shape.key_heads;
      ForwardHead<T> work(in, out, task / shape.key_heads, key_head);
      for (int64_t i = 0; i < shape.group(); ++i) work.run(key_head * shape.group() + i);
    });
  });
  return out;
}

AttentionGradients attention_backward(const AttentionInputs& in, const AttentionForward& forward,
                                      const at::Tensor& grad_BSHC) {
  const Shape shape(in);
  const AttentionGradients out{at::empty_like(in.query_BSHC), at::empty_like(in.key_BSJC),
                               at::empty_like(in.value_BSJC)};
  with_scalar(in.query_BSHC, [&]<class T>(T) {
    parallel_tasks(in.query_BSHC.size(0) * shape.key_heads, [&](int64_t task) {
      BackwardHead<T>(in, forward, grad_BSHC, out, task / shape.key_heads, task % shape.key_heads).run();
    });
  });
  return out;
}

}  // namespace coppice::kernels::cpu
