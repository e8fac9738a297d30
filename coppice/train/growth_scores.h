#pragma once

#include "coppice/data/sampler.h"
#include "coppice/nn/decoder.h"
#include "coppice/plan/utility.h"
#include "coppice/step/optimizer.h"

namespace coppice::train {

/// The last batches before a given window.
struct ScoredBatches {
  uint64_t before = 0, count = 0;  ///< count * windows are at most `before`
  int64_t windows = 0;             ///< windows per batch
  bool reset_attention = false;    ///< documents in a window do not see each other
};

/// The utility of every expert of a model in training, from the gradients of the mean token loss of each of `batches`
/// at the current weights. Adam's second moments are the optimizer's. The digest of the model stays empty.
///
/// Memory   the experts' gradients in f32 and their sum.
plan::Scores score_in_training(nn::Decoder& model, const step::Optimizer& optimizer, const data::Sampler& sampler,
                               const ScoredBatches& batches);

}  // namespace coppice::train
