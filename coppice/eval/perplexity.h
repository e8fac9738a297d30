#pragma once

// Loss and perplexity of a model over token files.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "coppice/data/token_file.h"
#include "coppice/nn/decoder.h"
#include "coppice/nn/fitted_decoder.h"

namespace coppice::eval {

struct LossSettings {
  int64_t sequence_length = 256;
  int64_t batch = 8;  ///< sequences per forward pass
  /// 0: all; otherwise the whole windows within the first `max_tokens` tokens, at least one; a file shorter than a
  /// window is used completely.
  uint64_t max_tokens = 0;
  bool reset_attention = false;                       ///< documents in a window do not see each other
  std::shared_ptr<const nn::LineageRouting> lineage;  ///< null: plain top-K
};

struct TokenLoss {
  double loss = 0;  ///< mean nats per predicted token
  uint64_t tokens = 0;
  /// Variance of the mean over sequences, which are assumed to be independent; NaN for one sequence.
  double loss_variance = 0;
  std::vector<std::vector<int64_t>> expert_counts;  ///< per MoE layer [E]
  std::vector<int64_t> moe_layers;
  double perplexity() const;
  /// Bits per byte of the text, if the card of the token file records its size: nats / log 2, times tokens per byte.
  std::optional<double> bits_per_byte(const data::TokenFile& tokens) const;
};

/// Mean cross-entropy over consecutive windows of `sequence_length` tokens, each predicted from its own window only.
/// Every token but the first is predicted once; the last window may be shorter.
///
/// Memory   the activations of `batch` windows, no gradients.
/// Ranks    collective over all ranks of the model's division, each of which takes a part of the windows of every pass
///          (up to `batch`); all get the same answer: that of one rank, up to the rounding of a window's loss.
/// Throws   Error{kUsage} if the file has no token to predict; Error{kNonFinite} if the loss is not a finite number;
///          Error{kInterrupted} if a signal has arrived.
TokenLoss token_loss(const nn::Decoder& model, const data::TokenFile& tokens, const LossSettings& settings);

/// The same for a model of any size; if it is not completely in memory, `batch` is the number of windows that fit.
TokenLoss token_loss(const nn::FittedDecoder& model, const data::TokenFile& tokens, const LossSettings& settings);

}  // namespace coppice::eval
