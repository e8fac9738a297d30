#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// How the B * S tokens of a batch divide into documents: found once a batch, for all layers. Empty: each sequence is
/// one document.
struct Documents {
  at::Tensor start_BS;     ///< int64, on the device: position in its sequence where each token's document starts
  at::Tensor here_BS;      ///< the same on the host
  at::Tensor first_token;  ///< int32 [N + 1], on the device: number of each document's first token, then B * S
  int64_t longest = 0;     ///< tokens of the longest document

  bool exist() const { return start_BS.defined(); }
};

/// The documents that start at these positions, for tensors of `device`. From pinned memory the host does not wait for it.
///
/// Shapes   start_BS int64, of the CPU, contiguous, rising in each sequence; undefined: none.
/// Memory   two copies of start_BS at most.
Documents find_documents(const at::Tensor& start_BS, at::Device device);

/// What a query sees besides the positions up to its own.
struct Sight {
  int64_t window = 0;  ///< of those positions the last so many, its own included; 0: all
  /// Of each head: an additional score that takes a share of the softmax but adds no value. Undefined: none.
  at::Tensor sink_H = {};
  Documents documents = {};  ///< a query sees its own document alone
};

/// Causal self-attention, softmax(scale q k') v, of the positions in sight; differentiable once.
///
/// Shapes   query_BSHC; key_BSJC and value_BSJC, H a multiple of J (grouped queries); returns [B, S, H, C].
/// Dtypes   f32 or bf16, alike; sinks any. Scores and sums in f32; in bf16 probabilities and their gradients are rounded
///          once.
/// Devices  on the CPU without window and sinks: kernels of our own, with AVX-512 for S and C multiples of 32 (in bf16
///          with AMX only C of 32), without it for C of 16 or 32 and S up to 512. In bf16 on a GPU with documents, windows or sinks, C a multiple of 8 up to 256:
///          libtorch's FlashAttention for sequences of different lengths, which wants an Ampere GPU or newer. With
///          documents, windows or sinks elsewhere: blocks of queries. All else: libtorch's scaled_dot_product_attention.
/// Memory   saves its arguments, its result and one f32 per query. Blocks also hold keys and values in f32, and 64 MiB of
///          scores for as many queries as that is enough for, at least one; never one number for every pair.
/// Threads  the bits of our own kernels do not depend on the number of threads.
/// Source   Dao et al., FlashAttention, arXiv:2205.14135 (the backward pass from the sums); Beltagy et al.,
///          arXiv:2004.05150 (window); Xiao et al., arXiv:2309.17453 (sinks).
at::Tensor causal_attention(const at::Tensor& query_BSHC, const at::Tensor& key_BSJC, const at::Tensor& value_BSJC,
                            double scale, const Sight& sight = {});

}  // namespace coppice::kernels
