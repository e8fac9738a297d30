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

/// A head of a [B, S, heads, C] tensor in one sequence as rows of f32, [P, C]; those after the last position are zero.
class Rows {
 public:
  Rows(int64_t positions, int64_t dim)
      : positions_(positions), dim_(dim), filled_((positions + kLanes - 1) / kLanes * kLanes), data_(filled_ * dim) {}

  void read(const at::Tensor& x_BSHC, int64_t sequence, int64_t head) {
    with_scalar(x_BSHC, [&]<class T>(T) {
      const T* from = x_BSHC.const_data_ptr<T>() + offset(x_BSHC, sequence, head);
      for (int64_t s = 0; s < positions_; ++s, from += x_BSHC.size(2) * dim_) {
        for (int64_t c = 0; c < dim_; ++c) data_[s * dim_ + c] = load(from[c]);
      }
    });
  }
  void write(const at::Tensor& x_BSHC, int64_t sequence, int64_t head) const {
    with_scalar(x_BSHC, [&]<class T>(T) {
      T* to = x_BSHC.mutable_data_ptr<T>() + offset(x_BSHC, sequence, head);
      for (int64_t s = 0; s < positions_; ++s, to += x_BSHC.size(2) * dim_) {
        for (int64_t c = 0; c < dim_; ++c) store(to[c], data_[s * dim_ + c]);
      }
    });
  }

  int64_t filled() const { return filled_; }
  float* row(int64_t s) { return data_.data() + s * dim_; }
  const float* row(int64_t s) const { return data_.data() + s * dim_; }
  /// Left side of a product: rows from `s` on, along C.
  Strided from(int64_t s) const { return {row(s), dim_, 1}; }

  /// 16 rows as a panel [C, 16].
  void panel(int64_t first, float* out) const { turn_rows(row(first), dim_, dim_, out, kLanes); }

 private:
  int64_t offset(const at::Tensor& x_BSHC, int64_t sequence, int64_t head) const {
    return (sequence * positions_ * x_BSHC.size(2) + head) * dim_;
  }

  int64_t positions_, dim_, filled_;
  std::vector<float> data_;
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
  /// out [16, C] = the sum over keys of weight [keys, 16] times the rows of `right`.
  void along_keys(const float* weight, const Rows& right, float* out) const {
    multiply_lanes<false>({weight, 1, kLanes}, kLanes, right.row(begin_), dim_, keys(), dim_, out, dim_);
  }
  /// sum [keys, C] += weight [keys, 16] times the block's own rows of `right`.
  void along_queries(const float* weight, const Rows& right, Rows& sum) const {
    multiply_lanes<true>({weight, kLanes, 1}, keys(), right.row(first_), dim_, kLanes, dim_, sum.row(begin_), dim_);
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

/// The larger of the scores times `scale`, for each lane.
void largest(const float* score, int64_t keys, float scale, float* top) {
  std::fill_n(top, kLanes, kHidden);
  for (int64_t key = 0; key < keys; ++key, score += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) top[i] = std::max(top[i], score[i] * scale);
  }
}

void sum_of(const float* weight, int64_t keys, float* sum) {
  std::fill_n(sum, kLanes, 0.0f);
  for (int64_t key = 0; key < keys; ++key, weight += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) sum[i] += weight[i];
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
  Rows key(positions, dim), value(positions, dim), query(positions, dim), result(positions, dim);
  key.read(in.key_BSJC, sequence, key_head);
  value.read(in.value_BSJC, sequence, key_head);
  std::vector<float> panel(dim * kLanes), weight(key.filled() * kLanes);
  Block block(in, sequence);
  for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
    query.read(in.query_BSHC, sequence, head);
    float* const log_sum = log_sums(in, out, sequence, head);
    for (int64_t first = 0; first < positions; first += kLanes) {
      block.select(first);
      query.panel(first, panel.data());
      block.against(key, panel.data(), weight.data());
      block.hide(weight.data(), kHidden);
      float top[kLanes], sum[kLanes];
      largest(weight.data(), block.keys(), scale, top);
      exponentials(weight.data(), block.keys(), scale, top);
      block.hide(weight.data(), 0.0f);
      sum_of(weight.data(), block.keys(), sum);
      block.along_keys(weight.data(), value, result.row(first));
      for (int64_t i = 0; i < std::min(kLanes, positions - first); ++i) {
        log_sum[first + i] = top[i] + std::log(sum[i]);
        const float factor = 1.0f / sum[i];
        for (int64_t c = 0; c < dim; ++c) result.row(first + i)[c] *= factor;
      }
    }
    result.write(out.out_BSHC, sequence, head);
  }
}

void backward_head(const AttentionInputs& in, const AttentionForward& forward, const at::Tensor& grad_BSHC,
                   const AttentionGradients& out, int64_t sequence, int64_t key_head) {
  const int64_t positions = in.query_BSHC.size(1), dim = in.query_BSHC.size(3);
  const int64_t group = in.query_BSHC.size(2) / in.key_BSJC.size(2);
  const auto scale = static_cast<float>(in.scale);
  Rows key(positions, dim), value(positions, dim), query(positions, dim), grad(positions, dim), result(positions, dim);
  Rows grad_key(positions, dim), grad_value(positions, dim), grad_query(positions, dim);
  key.read(in.key_BSJC, sequence, key_head);
  value.read(in.value_BSJC, sequence, key_head);
  std::vector<float> panel(dim * kLanes), result_panel(dim * kLanes);
  std::vector<float> weight(key.filled() * kLanes), slope(key.filled() * kLanes);
  Block block(in, sequence);
  for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
    query.read(in.query_BSHC, sequence, head);
    grad.read(grad_BSHC, sequence, head);
    result.read(forward.out_BSHC, sequence, head);
    const float* const log_sum = log_sums(in, forward, sequence, head);
    for (int64_t first = 0; first < positions; first += kLanes) {
      block.select(first);
      float less[kLanes] = {}, dot[kLanes] = {};
      std::copy_n(log_sum + first, std::min(kLanes, positions - first), less);
      query.panel(first, panel.data());
      block.against(key, panel.data(), weight.data());
      exponentials(weight.data(), block.keys(), scale, less);
      block.hide(weight.data(), 0.0f);
      result.panel(first, result_panel.data());
      grad.panel(first, panel.data());
      for (int64_t c = 0; c < dim; ++c) {
        for (int64_t i = 0; i < kLanes; ++i) dot[i] += panel[c * kLanes + i] * result_panel[c * kLanes + i];
      }
      block.against(value, panel.data(), slope.data());
      for (int64_t key_at = 0; key_at < block.keys(); ++key_at) {
        for (int64_t i = 0; i < kLanes; ++i) {
          const int64_t at = key_at * kLanes + i;
          slope[at] = weight[at] * (slope[at] - dot[i]) * scale;
        }
      }
      block.along_keys(slope.data(), key, grad_query.row(first));
      block.along_queries(slope.data(), query, grad_key);
      block.along_queries(weight.data(), grad, grad_value);
    }
    grad_query.write(out.query_BSHC, sequence, head);
  }
  grad_key.write(out.key_BSJC, sequence, key_head);
  grad_value.write(out.value_BSJC, sequence, key_head);
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
