#pragma once

#include "coppice/data/sampler.h"
#include "coppice/nn/decoder.h"
#include "coppice/train/optimizer.h"
#include "coppice/upcycle/utility.h"

namespace coppice::train {

/// Utility of every expert of a model in training, from the gradients of the mean token loss over the batches
/// [first, first + count) of `windows` windows each, at the weights as they are now; Adam's second moments are the
/// optimizer's. The digest of the model is left empty.
///
/// Memory   the experts' gradients in f32 and their sum.
upcycle::Scores score_in_training(nn::Decoder& model, const Optimizer& optimizer, const data::Sampler& sampler,
                                  uint64_t first, uint64_t count, int64_t windows);

}  // namespace coppice::train
