#pragma once

// The backward pass of attention_words_detail.h. Include it last.

#include "coppice/base/lane_sum.h"
#include "coppice/kernels/cpu/attention_words_detail.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

namespace coppice::kernels::cpu {
namespace {

template <class Unit>
class BackwardHead {
  using T = typename Unit::Element;

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
        block_(2 * std::max<int64_t>(kLanes, Unit::kRows) * kQueries) {
    Unit::turn([&](int64_t s) { return key_.row(s); }, shape_.positions, shape_.dim, key_words_.get());
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
    const Range keys = sight_.keys(first, Unit::kRows);
    const auto query = Head<const T>::of(in_.query_BSHC, sequence_, head);
    const auto grad = Head<const T>::of(grad_BSHC_, sequence_, head);
    pack_queries(query, first, dim, query_panels_.get());
    pack_queries(grad, first, dim, grad_panels_.get());
    pack_columns(query, first, query_columns_.get());
    pack_columns(grad, first, grad_columns_.get());
    slope(head, first, keys, grad);
    const __m512 one = _mm512_set1_ps(1.0f);
    const Words key_words =
        Unit::turned(key_words_.get(), keys.begin / kPerWord<T>, shape_.positions / kPerWord<T>, dim);
    project(unit_, key_words, slope_panels_.get(), keys.words<T>(), dim, {one, one},
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
        forward_.log_sum.const_data_ptr<float>() + (sequence_ * shape_.heads + head) * shape_.positions + first;
    alignas(64) float dot_of[kQueries];
    for (int64_t i = 0; i < kQueries; ++i) {
      const T *o = out.row(first + i), *g = grad.row(first + i);
      dot_of[i] = lane_sum<float>(dim, [&](int64_t c) { return load(o[c]) * load(g[c]); });
    }
    const __m512 scale = _mm512_set1_ps(static_cast<float>(in_.scale));
    float* const scores = block_.get();
    float* const grads = scores + Unit::kRows * kQueries;
    const __m512i starts[kPanels] = {sight_.starts(first), sight_.starts(first + kLanes)};
    for (int64_t key = keys.begin; key < keys.end; key += Unit::kRows) {
      unit_.multiply(key_.words().row(key), query_panels_.get(), words, scores);
      unit_.multiply(value_.words().row(key), grad_panels_.get(), words, grads);
      for (int64_t j = 0; j < kPanels; ++j) {
        const __m512 total = _mm512_loadu_ps(log_sum + j * kLanes), dot = _mm512_load_ps(dot_of + j * kLanes);
        Word* const panel = slope_panels_.get() + j * keys.words<T>() * kLanes;
        for (int64_t i = 0; i < Unit::kRows; i += 2) {
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
    for (int64_t key = keys.begin; key < keys.end; key += Unit::kRows) {
      for (int64_t c = 0; c < shape_.dim; c += kPanels * kLanes) {
        unit_.multiply(rows.row(key), columns + c * words, words, block_.get());
        for (int64_t i = 0; i < Unit::kRows; ++i) {
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
  Unit unit_;
};

template <class Unit>
AttentionGradients words_attention_backward(const AttentionInputs& in, const AttentionForward& forward,
                                            const at::Tensor& grad_BSHC) {
  const Shape shape(in);
  const AttentionGradients out{at::empty_like(in.query_BSHC), at::empty_like(in.key_BSJC),
                               at::empty_like(in.value_BSJC)};
  parallel_tasks(in.query_BSHC.size(0) * shape.key_heads, [&](int64_t task) {
    BackwardHead<Unit>(in, forward, grad_BSHC, out, task / shape.key_heads, task % shape.key_heads).run();
  });
  return out;
}

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options
