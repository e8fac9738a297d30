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
  int64_t batch = 8;             ///< sequences a forward pass
  uint64_t max_tokens = 0;       ///< 0: all; else the whole windows among the first so many, at least one; a
                                 ///< file shorter than a window is used whole
  bool reset_attention = false;  ///< documents in a window do not see each other
  std::shared_ptr<const nn::LineageRouting> lineage;  ///< null: plain top-K
};

struct TokenLoss {
  double loss = 0;  ///< mean nats per predicted token
  uint64_t tokens = 0;
  double loss_variance = 0;  ///< of the mean over sequences, taken as independent; NaN for one sequence
  std::vector<std::vector<int64_t>> expert_counts;  ///< per MoE layer [E]
  std::vector<int64_t> moe_layers;
  double perplexity() const;
  /// Of the text behind the tokens, if the file's card tells its size: nats over log 2, times tokens a byte.
  std::optional<double> bits_per_byte(const data::TokenFile& tokens) const;
};

/// Mean cross-entropy over consecutive windows of `sequence_length` tokens, each predicted from its own window only.
/// Every token but the first is predicted once; what is left at the end is a shorter window.
///
/// Memory   the activations of `batch` windows, no gradients.
/// Throws   Error{kUsage} if the file has no token to predict; Error{kNonFinite} if the loss is not a finite number;
///          Error{kInterrupted} if a signal has arrived.
TokenLoss token_loss(const nn::Decoder& model, const data::TokenFile& tokens, const LossSettings& settings);

/// The same of a model of any size; where it is not whole in memory, `batch` is as many windows as there is room for.
TokenLoss token_loss(const nn::FittedDecoder& model, const data::TokenFile& tokens, const LossSettings& settings);

}  // namespace coppice::eval
