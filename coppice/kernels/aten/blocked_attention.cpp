// Attention in plain operators, a block of queries at a time. B sequences, S positions, H query heads, J key heads, G =
// H / J, C head dimension, N = B * J, R = G * (queries of the block), K keys of the block.

#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "coppice/base/check.h"
#include "coppice/kernels/aten/widened_detail.h"
#include "coppice/kernels/attention_detail.h"

namespace coppice::kernels::aten {
namespace {

using detail::AttentionForward;
using detail::AttentionGradients;
using detail::AttentionInputs;

constexpr int64_t kMostScores = int64_t{16} << 20;  // at a time: 64 MiB in f32
constexpr int64_t kMostQueries = 256;               // more do not make the products faster

struct Block {
  int64_t first, count;     ///< queries
  int64_t first_key, keys;  ///< all that any of them sees
};

class Blocks {
 public:
  explicit Blocks(const AttentionInputs& in)
      : in_(in),
        batch_(in.query_BSHC.size(0)),
        positions_(in.query_BSHC.size(1)),
        key_heads_(in.key_BSJC.size(2)),
        group_(in.query_BSHC.size(2) / in.key_BSJC.size(2)),
        key_NSC_(of_keys(in.key_BSJC)),
        value_NSC_(of_keys(in.value_BSJC)) {
    COPPICE_CHECK(in.query_BSHC.size(2) % key_heads_ == 0);
  }

  /// Calls f(block) for all queries.
  template <class F>
  void each(const F& f) const {
    const int64_t row = std::max<int64_t>(1, batch_ * in_.query_BSHC.size(2) * positions_);
    const int64_t most = std::clamp<int64_t>(kMostScores / row, 1, kMostQueries);
    for (int64_t first = 0; first < positions_; first += most) {
      const int64_t count = std::min(most, positions_ - first), begin = first_key(first);
      f(Block{first, count, begin, first + count - begin});
    }
  }

  /// The queries of a block, of a tensor as query_BSHC: [N, R, C].
  at::Tensor rows(const at::Tensor& x_BSHC, const Block& block) const {
    const auto apart = x_BSHC.narrow(1, block.first, block.count).unflatten(2, {key_heads_, group_});
    return widened(apart.permute({0, 2, 3, 1, 4}).reshape({batch_ * key_heads_, group_ * block.count, -1}));
  }
  /// The way back.
  void put(const at::Tensor& x_NRC, const Block& block, const at::Tensor& to_BSHC) const {
    const auto apart = x_NRC.view({batch_, key_heads_, group_, block.count, -1}).permute({0, 3, 1, 2, 4});
    to_BSHC.narrow(1, block.first, block.count).copy_(apart.flatten(2, 3));
  }
  /// Of a tensor [N, G, S] as the log of the sums is; a view.
  at::Tensor sums(const at::Tensor& x_NGS, const Block& block) const {
    return x_NGS.narrow(2, block.first, block.count);
  }
  at::Tensor keys(const Block& block) const { return key_NSC_.narrow(1, block.first_key, block.keys); }
  at::Tensor values(const Block& block) const { return value_NSC_.narrow(1, block.first_key, block.keys); }

  /// Scores of a block, -infinity where a query does not see the key: [N, R, K].
  at::Tensor scores(const at::Tensor& query_NRC, const Block& block) const {
    auto score_NRK = at::bmm(query_NRC, keys(block).transpose(1, 2)).mul_(in_.scale);
    score_NRK.view({batch_, key_heads_, group_, block.count, block.keys})
        .masked_fill_(hidden(block), -std::numeric_limits<double>::infinity());
    return score_NRK;
  }
  /// The sink of each head, [N, G, 1].
  at::Tensor sinks() const {
    const auto sink_JG = widened(in_.sight.sink_H).to(key_NSC_.scalar_type()).view({1, key_heads_, group_, 1});
    return sink_JG.expand({batch_, -1, -1, -1}).reshape({batch_ * key_heads_, group_, 1});
  }
  at::Tensor empty_sums() const { return at::empty({batch_ * key_heads_, group_, positions_}, key_NSC_.options()); }
  /// Of keys and values, [N, S, C] to [B, S, J, C] in the inputs' dtype.
  at::Tensor from_keys(const at::Tensor& x_NSC) const {
    const auto apart = x_NSC.view({batch_, key_heads_, positions_, -1}).transpose(1, 2);
    return apart.to(in_.key_BSJC.scalar_type()).contiguous();
  }
  at::Tensor zero_keys() const { return at::zeros(key_NSC_.sizes(), key_NSC_.options()); }

 private:
  at::Tensor of_keys(const at::Tensor& x_BSJC) const {
    return widened(x_BSJC.transpose(1, 2)).contiguous().flatten(0, 1);
  }

  int64_t first_key(int64_t query) const {
    const auto& here_BS = in_.sight.documents.here_BS;
    int64_t first = in_.sight.window > 0 ? std::max<int64_t>(0, query - in_.sight.window + 1) : 0;
    if (!here_BS.defined()) return first;
    int64_t start = positions_;
    for (int64_t b = 0; b < batch_; ++b) {
      start = std::min(start, here_BS.const_data_ptr<int64_t>()[b * positions_ + query]);
    }
    return std::max(first, start);
  }

  /// [B or 1, 1, 1, queries, K].
  at::Tensor hidden(const Block& block) const {
    const auto longs = key_NSC_.options().dtype(at::kLong);
    const auto query_Q1 = at::arange(block.first, block.first + block.count, longs).unsqueeze(1);
    const auto key_K = at::arange(block.first_key, block.first_key + block.keys, longs);
    auto hidden = key_K > query_Q1;
    if (in_.sight.window > 0) hidden.logical_or_(key_K <= query_Q1 - in_.sight.window);
    if (!in_.sight.documents.exist()) return hidden.view({1, 1, 1, block.count, block.keys});
    const auto start_BQ1 = in_.sight.documents.start_BS.narrow(1, block.first, block.count).unsqueeze(2);
    return hidden.logical_or(key_K < start_BQ1).view({batch_, 1, 1, block.count, block.keys});
  }

  const AttentionInputs& in_;
  int64_t batch_, positions_, key_heads_, group_;
  at::Tensor key_NSC_, value_NSC_;
};

/// A number of each query of a block, [N, G, queries] as a column of its rows.
at::Tensor column(const at::Tensor& x_NGQ) { return x_NGQ.flatten(1, 2).unsqueeze(2); }

AttentionForward forward(const AttentionInputs& in) {
  const Blocks blocks(in);
  const auto log_sum_NGS = blocks.empty_sums();
  AttentionForward out{at::empty(in.query_BSHC.sizes(), in.query_BSHC.options()), {}};
  blocks.each([&](const Block& block) {
    auto score_NRK = blocks.scores(blocks.rows(in.query_BSHC, block), block);
    const auto log_sum_NGQ = blocks.sums(log_sum_NGS, block);
    const auto of_keys_NR = at::logsumexp(score_NRK, 2);
    log_sum_NGQ.copy_(of_keys_NR.view(log_sum_NGQ.sizes()));
    if (in.sight.sink_H.defined()) log_sum_NGQ.copy_(at::logaddexp(log_sum_NGQ, blocks.sinks()));
    const auto weight_NRK = score_NRK.sub_(column(log_sum_NGQ)).exp_();
    blocks.put(at::bmm(weight_NRK, blocks.values(block)), block, out.out_BSHC);
  });
  out.log_sum = log_sum_NGS.view({in.query_BSHC.size(0), in.query_BSHC.size(2), in.query_BSHC.size(1)});
  return out;
}

AttentionGradients backward(const AttentionInputs& in, const AttentionForward& kept, const at::Tensor& grad_BSHC) {
  const Blocks blocks(in);
  const int64_t key_heads = in.key_BSJC.size(2), group = in.query_BSHC.size(2) / key_heads;
  const auto log_sum_NGS = kept.log_sum.view({in.query_BSHC.size(0) * key_heads, group, in.query_BSHC.size(1)});
  const auto grad_key_NSC = blocks.zero_keys(), grad_value_NSC = blocks.zero_keys();
  AttentionGradients out{at::empty(in.query_BSHC.sizes(), in.query_BSHC.options()), {}, {}};
  at::Tensor grad_sink_NG;
  blocks.each([&](const Block& block) {
    const auto query_NRC = blocks.rows(in.query_BSHC, block), grad_NRC = blocks.rows(grad_BSHC, block);
    const auto log_sum_NGQ = blocks.sums(log_sum_NGS, block);
    const auto weight_NRK = blocks.scores(query_NRC, block).sub_(column(log_sum_NGQ)).exp_();
    grad_value_NSC.narrow(1, block.first_key, block.keys).baddbmm_(weight_NRK.transpose(1, 2), grad_NRC);
    const auto inner_NR1 = (grad_NRC * blocks.rows(kept.out_BSHC, block)).sum(2, /*keepdim=*/true);
    if (in.sight.sink_H.defined()) {
      const auto part_NG = ((blocks.sinks() - log_sum_NGQ).exp() * inner_NR1.view(log_sum_NGQ.sizes())).sum(2);
      grad_sink_NG = grad_sink_NG.defined() ? grad_sink_NG + part_NG : part_NG;
    }
    auto grad_score_NRK = at::bmm(grad_NRC, blocks.values(block).transpose(1, 2));
    grad_score_NRK.sub_(inner_NR1).mul_(weight_NRK).mul_(in.scale);
    blocks.put(at::bmm(grad_score_NRK, blocks.keys(block)), block, out.query_BSHC);
    grad_key_NSC.narrow(1, block.first_key, block.keys).baddbmm_(grad_score_NRK.transpose(1, 2), query_NRC);
  });
  out.key_BSJC = blocks.from_keys(grad_key_NSC);
  out.value_BSJC = blocks.from_keys(grad_value_NSC);
  if (grad_sink_NG.defined()) {
    const auto of_heads_BH = grad_sink_NG.view({in.query_BSHC.size(0), in.query_BSHC.size(2)});
    out.sink_H = of_heads_BH.sum(0).neg().to(in.sight.sink_H.scalar_type());
  }
  return out;
}

}  // namespace

const detail::AttentionVariant kAttentionByBlocks{forward, backward};

}  // namespace coppice::kernels::aten
