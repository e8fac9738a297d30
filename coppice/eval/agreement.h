#pragma once

// Compares the predictions of two models.

#include <cstdint>
#include <functional>

#include "coppice/data/token_file.h"
#include "coppice/eval/perplexity.h"
#include "coppice/nn/fitted_decoder.h"

namespace coppice::eval {

struct Agreement {
  double kl = 0;     ///< mean over predicted tokens of KL(other || model), nats
  double top_1 = 0;  ///< share of predictions with the same most likely token
  uint64_t tokens = 0;
  double loss = 0, other_loss = 0;  ///< mean nats per predicted token
  double largest_difference = 0;    ///< largest absolute difference of a logit
  double largest_logit = 0;         ///< largest absolute logit of the other model
};

/// Called with the choices of every router of `model`, for some tokens at a time.
using VisitRouting = std::function<void(int64_t layer, const nn::Routed& routed)>;

/// Compares the predictions of `model` and `other` at every position of token_loss's windows.
///
/// Ranks    collective over all ranks of the division, which is the same for both models; all get the same answer.
///          `visit_routing` gets the choices of the rank's own windows (and those of passes that do not count).
/// Memory   both models, and the other's last hidden states for the windows of one pass.
/// Throws   Error{kUsage} if the vocabularies differ in size, or the file has no token to predict; Error{kNonFinite} if
///          a loss or the divergence is not a finite number.
Agreement agreement(const nn::FittedDecoder& model, const nn::FittedDecoder& other, const data::TokenFile& tokens,
                    const LossSettings& settings, const VisitRouting& visit_routing = {});

}  // namespace coppice::eval
