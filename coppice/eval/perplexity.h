#pragma once

#include <cstdint>
#include <vector>

#include "coppice/data/token_file.h"
#include "coppice/nn/decoder.h"

namespace coppice::eval {

struct LossSettings {
  int64_t sequence_length = 256;
  int64_t batch = 8;           ///< sequences a forward pass
  uint64_t max_tokens = 0;     ///< 0: all; else the first windows of the file
};

struct TokenLoss {
  double loss = 0;             ///< mean nats per predicted token
  uint64_t tokens = 0;
  double loss_variance = 0;    ///< of the mean over sequences
  std::vector<std::vector<int64_t>> expert_counts;  ///< per MoE layer [E]
  std::vector<int64_t> moe_layers;
  double perplexity() const;
};

/// Mean cross-entropy over consecutive windows of `sequence_length` tokens, each predicted from its own window only.
TokenLoss token_loss(const nn::Decoder& model, const data::TokenFile& tokens, const LossSettings& settings);

}  // namespace coppice::eval
