#pragma once

// Causal attention of narrow heads over short sequences, where libtorch's blocks are mostly overhead. The lanes are 16
// queries of one head, the sums f32. A task is one key head of one sequence with the queries that share it; its matrices
// stay in the caches, and the bits do not depend on threads. S positions, P the same filled up to whole blocks of
// queries, C head dimension. Include it as lanes_loops_detail.h.

#include "coppice/kernels/cpu/lanes_loops_detail.h"

namespace coppice::kernels::cpu {
namespace {

using detail::AttentionForward;
using detail::AttentionGradients;
using detail::AttentionInputs;

constexpr int64_t kLanes = kNarrowLanes;
constexpr float kHidden = -std::numeric_limits<float>::infinity();  // the score of a key that a query does not see

/// A head of a [B, S, heads, C] tensor in one sequence as rows of f32, [P, C]: where the tensor has them, or a copy if
/// its numbers are no f32 or rows are missing from the last block. The rows of a copy after the last position are zero.
class Rows {
 public:
  float* row(int64_t s) { return data_ + s * step_; }
  const float* row(int64_t s) const { return data_ + s * step_; }
  int64_t step() const { return step_; }
  int64_t filled() const { return filled_; }
  /// Left side of a product: rows from `s` on, along C.
  Strided from(int64_t s) const { return {row(s), step_, 1}; }

  /// 16 rows as a panel [C, 16].
  void panel(int64_t first, float* out) const { turn_rows(row(first), step_, dim_, out, kLanes); }

 protected:
  Rows(const at::Tensor& x_BSHC, int64_t sequence, int64_t head)
      : positions_(x_BSHC.size(1)),
        dim_(x_BSHC.size(3)),
        filled_((positions_ + kLanes - 1) / kLanes * kLanes),
        tensor_step_(x_BSHC.size(2) * dim_),
        offset_((sequence * positions_ * x_BSHC.size(2) + head) * dim_) {
    if (x_BSHC.scalar_type() == at::kFloat && positions_ == filled_) {
      data_ = static_cast<float*>(x_BSHC.data_ptr()) + offset_;
      step_ = tensor_step_;
    } else {
      copy_.emplace(filled_ * dim_);
      data_ = copy_->get();
      step_ = dim_;
    }
  }
  bool is_copy() const { return copy_.has_value(); }

  /// f(number of the copy, number of the tensor) for all of them.
  template <class T, class F>
  void each(T* tensor, const F& f) const {
    tensor += offset_;
    for (int64_t s = 0; s < positions_; ++s, tensor += tensor_step_) {
      for (int64_t c = 0; c < dim_; ++c) f(data_[s * dim_ + c], tensor[c]);
    }
  }

  int64_t positions_, dim_, filled_, tensor_step_, offset_, step_ = 0;
  float* data_ = nullptr;
  std::optional<Scratch<float>> copy_;
};

class InRows : public Rows {
 public:
  InRows(const at::Tensor& x_BSHC, int64_t sequence, int64_t head) : Rows(x_BSHC, sequence, head) {
    if (!is_copy()) return;
    std::fill_n(row(positions_), (filled_ - positions_) * dim_, 0.0f);
    with_scalar(x_BSHC, [&]<class T>(T) {
      each(x_BSHC.const_data_ptr<T>(), [](float& to, const T& from) { to = load(from); });
    });
  }
};

/// Call finish() when they are complete.
class OutRows : public Rows {
 public:
  OutRows(const at::Tensor& x_BSHC, int64_t sequence, int64_t head) : Rows(x_BSHC, sequence, head), tensor_(x_BSHC) {}

  void set_zero() {
    for (int64_t s = 0; s < filled_; ++s) std::fill_n(row(s), dim_, 0.0f);
  }
  void finish() const {
    if (!is_copy()) return;
    with_scalar(tensor_,
                [&]<class T>(T) { each(tensor_.mutable_data_ptr<T>(), [](float from, T& to) { store(to, from); }); });
  }

 private:
  const at::Tensor& tensor_;
};

/// What one sequence's queries see, and products of a block of 16 of them with the keys they see.
class Block {
 public:
  Block(const AttentionInputs& in, int64_t sequence)
      : positions_(in.query_BSHC.size(1)), dim_(in.query_BSHC.size(3)), start_(starts(in, sequence)) {}

  /// Moves to the queries from `first` on.
  void select(int64_t first) {
    first_ = first;
    end_ = first + kLanes;
    begin_ = start_ ? start_[first] / 4 * 4 : 0;
  }
  int64_t keys() const { return end_ - begin_; }

  /// out [keys, 16] = rows of `left` times a panel [C, 16].
  void against(const Rows& left, const float* panel, float* out) const {
    multiply_lanes<false>(left.from(begin_), keys(), panel, kLanes, dim_, kLanes, out, kLanes);
  }
  /// The block's own rows of `out` = the sum over keys of weight [keys, 16] times the rows of `right`.
  void along_keys(const float* weight, const Rows& right, Rows& out) const {
    multiply_lanes<false>({weight, 1, kLanes}, kLanes, right.row(begin_), right.step(), keys(), dim_, out.row(first_),
                          out.step());
  }
  /// sum [keys, C] += weight [keys, 16] times the block's own rows of `right`.
  void along_queries(const float* weight, const Rows& right, Rows& sum) const {
    multiply_lanes<true>({weight, kLanes, 1}, keys(), right.row(first_), right.step(), kLanes, dim_, sum.row(begin_),
                         sum.step());
  }

  /// Sets what belongs to keys that a query does not see in numbers [keys, 16].
  void hide(float* score, float value) const {
    for (int64_t key = first_ + 1; key < end_; ++key) std::fill_n(score + (key - begin_) * kLanes, key - first_, value);
    for (int64_t i = 0; start_ && i < kLanes && first_ + i < positions_; ++i) {
      for (int64_t key = begin_; key < start_[first_ + i]; ++key) score[(key - begin_) * kLanes + i] = value;
    }
  }

 private:
  static const int64_t* starts(const AttentionInputs& in, int64_t sequence) {
    const auto& start_BS = in.sight.documents.start_BS;
    return start_BS.defined() ? start_BS.const_data_ptr<int64_t>() + sequence * start_BS.size(1) : nullptr;
  }

  int64_t positions_, dim_;
  const int64_t* start_;  // null: no document starts inside
  int64_t first_ = 0, begin_ = 0, end_ = 0;
};

/// Replaces each score by exp(score * scale - less), also hidden ones: a condition here keeps the loop from vectors.
void exponentials(float* __restrict score, int64_t keys, float scale, const float* __restrict less) {
  for (int64_t key = 0; key < keys; ++key, score += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      score[i] = detail::exp_f32(score[i] * scale - less[i]);
    }
  }
}

/// What f makes of `start` and the numbers of all keys, for each of the 16 queries.
template <class F>
void over_keys(const float* score, int64_t keys, float start, float* out, const F& f) {
  Vectors::Vector lanes[kLaneVectors];
  fold_lanes(keys * kLanes, start, lanes,
             [&](auto all, int64_t at) __attribute__((always_inline)) { return f(all, Vectors::load(score + at)); });
  unrolled<kLaneVectors>([&](auto v)
                             __attribute__((always_inline)) { Vectors::store(out + v * Vectors::kLanes, lanes[v]); });
}

/// The largest of the scores times `scale`, for each lane.
void largest(const float* score, int64_t keys, float scale, float* top) {
  over_keys(score, keys, kHidden, top, [scale](auto most, auto s) __attribute__((always_inline)) {
    return Vectors::larger(most, Vectors::multiply(s, Vectors::all(scale)));
  });
}

void sum_of(const float* weight, int64_t keys, float* sum) {
  over_keys(weight, keys, 0.0f, sum,
            [](auto all, auto w) __attribute__((always_inline)) { return Vectors::add(all, w); });
}

/// Replaces the gradients of the weights by those of the scores.
void slopes(const float* __restrict weight, int64_t keys, float scale, const float* __restrict dot,
            float* __restrict slope) {
  for (int64_t key = 0; key < keys; ++key, weight += kLanes, slope += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) slope[i] = weight[i] * (slope[i] - dot[i]) * scale;
  }
}

float* log_sums(const AttentionInputs& in, const AttentionForward& out, int64_t sequence, int64_t head) {
  const int64_t positions = in.query_BSHC.size(1), heads = in.query_BSHC.size(2);
  return out.log_sum.data_ptr<float>() + (sequence * heads + head) * positions;
}

void forward_head(const AttentionInputs& in, const AttentionForward& out, int64_t sequence, int64_t key_head) {
  const int64_t positions = in.query_BSHC.size(1), dim = in.query_BSHC.size(3);
  const int64_t group = in.query_BSHC.size(2) / in.key_BSJC.size(2);
  const auto scale = static_cast<float>(in.scale);
  const InRows key(in.key_BSJC, sequence, key_head), value(in.value_BSJC, sequence, key_head);
  const Scratch<float> panel(dim * kLanes), weight(key.filled() * kLanes);
  Block block(in, sequence);
  for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
    const InRows query(in.query_BSHC, sequence, head);
    OutRows result(out.out_BSHC, sequence, head);
    float* const log_sum = log_sums(in, out, sequence, head);
    for (int64_t first = 0; first < positions; first += kLanes) {
      block.select(first);
      query.panel(first, panel.get());
      block.against(key, panel.get(), weight.get());
      block.hide(weight.get(), kHidden);
      float top[kLanes], sum[kLanes];
      largest(weight.get(), block.keys(), scale, top);
      exponentials(weight.get(), block.keys(), scale, top);
      block.hide(weight.get(), 0.0f);
      sum_of(weight.get(), block.keys(), sum);
      block.along_keys(weight.get(), value, result);
      for (int64_t i = 0; i < std::min(kLanes, positions - first); ++i) {
        log_sum[first + i] = top[i] + std::log(sum[i]);
        const float factor = 1.0f / sum[i];
        for (int64_t c = 0; c < dim; ++c) result.row(first + i)[c] *= factor;
      }
    }
    result.finish();
  }
}

void backward_head(const AttentionInputs& in, const AttentionForward& forward, const at::Tensor& grad_BSHC,
                   const AttentionGradients& out, int64_t sequence, int64_t key_head) {
  const int64_t positions = in.query_BSHC.size(1), dim = in.query_BSHC.size(3);
  const int64_t group = in.query_BSHC.size(2) / in.key_BSJC.size(2);
  const auto scale = static_cast<float>(in.scale);
  const InRows key(in.key_BSJC, sequence, key_head), value(in.value_BSJC, sequence, key_head);
  OutRows grad_key(out.key_BSJC, sequence, key_head), grad_value(out.value_BSJC, sequence, key_head);
  grad_key.set_zero();
  grad_value.set_zero();
  const Scratch<float> panel(dim * kLanes), result_panel(dim * kLanes);
  const Scratch<float> weight(key.filled() * kLanes), slope(key.filled() * kLanes);
  Block block(in, sequence);
  for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
    const InRows query(in.query_BSHC, sequence, head), grad(grad_BSHC, sequence, head);
    const InRows result(forward.out_BSHC, sequence, head);
    OutRows grad_query(out.query_BSHC, sequence, head);
    const float* const log_sum = log_sums(in, forward, sequence, head);
    for (int64_t first = 0; first < positions; first += kLanes) {
      block.select(first);
      float less[kLanes] = {}, dot[kLanes] = {};
      std::copy_n(log_sum + first, std::min(kLanes, positions - first), less);
      query.panel(first, panel.get());
      block.against(key, panel.get(), weight.get());
      exponentials(weight.get(), block.keys(), scale, less);
      block.hide(weight.get(), 0.0f);
      result.panel(first, result_panel.get());
      grad.panel(first, panel.get());
      for (int64_t c = 0; c < dim; ++c) {
        for (int64_t i = 0; i < kLanes; ++i) dot[i] += panel.get()[c * kLanes + i] * result_panel.get()[c * kLanes + i];
      }
      block.against(value, panel.get(), slope.get());
      slopes(weight.get(), block.keys(), scale, dot, slope.get());
      block.along_keys(slope.get(), key, grad_query);
      block.along_queries(slope.get(), query, grad_key);
      block.along_queries(weight.get(), grad, grad_value);
    }
    grad_query.finish();
  }
  grad_key.finish();
  grad_value.finish();
}

AttentionForward forward(const AttentionInputs& in) {
  const int64_t sequences = in.query_BSHC.size(0), key_heads = in.key_BSJC.size(2);
  const AttentionForward out{
      at::empty_like(in.query_BSHC),
      at::empty({sequences, in.query_BSHC.size(2), in.query_BSHC.size(1)}, in.query_BSHC.options().dtype(at::kFloat))};
  parallel_tasks(sequences * key_heads, [&](int64_t i) { forward_head(in, out, i / key_heads, i % key_heads); });
  return out;
}

AttentionGradients backward(const AttentionInputs& in, const AttentionForward& forward, const at::Tensor& grad_BSHC) {
  const int64_t key_heads = in.key_BSJC.size(2);
  const AttentionGradients out{at::empty_like(in.query_BSHC), at::empty_like(in.key_BSJC),
                               at::empty_like(in.value_BSJC)};
  parallel_tasks(in.query_BSHC.size(0) * key_heads,
                 [&](int64_t i) { backward_head(in, forward, grad_BSHC, out, i / key_heads, i % key_heads); });
  return out;
}

}  // namespace

}  // namespace coppice::kernels::cpu
