#pragma once

// How alike two models predict.

#include <cstdint>
#include <functional>

#include "coppice/data/token_file.h"
#include "coppice/eval/perplexity.h"
#include "coppice/nn/fitted_decoder.h"

namespace coppice::eval {

struct Agreement {
  double kl = 0;     ///< mean over predicted tokens of KL(other || model), nats
  double top_1 = 0;  ///< share of predictions at which both put the same token first
  uint64_t tokens = 0;
  double loss = 0, other_loss = 0;  ///< mean nats per predicted token
  double largest_difference = 0;    ///< of two logits, absolute
  double largest_logit = 0;         ///< of the other's, absolute
};

/// What every router of `model` chose, some tokens at a time.
using VisitRouting = std::function<void(int64_t layer, const nn::Routed& routed)>;

/// Compares what `model` and `other` predict at every position of token_loss's windows.
///
/// Memory   that of both models, and what comes out of the other's last layer for as many windows as go at once.
/// Throws   Error{kUsage} if the vocabularies differ in size, or the file has no token to predict; Error{kNonFinite} if
///          a loss or the divergence is not a finite number.
Agreement agreement(const nn::FittedDecoder& model, const nn::FittedDecoder& other, const data::TokenFile& tokens,
                    const LossSettings& settings, const VisitRouting& visit_routing = {});

}  // namespace coppice::eval
