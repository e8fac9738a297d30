#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "coppice/step/sibling_routing.h"
#include "coppice/step/train_step.h"
#include "coppice/train/growth_course.h"
#include "coppice/train/tensorboard.h"

namespace coppice::train {

/// The metrics of each MoE layer and their means in metrics.jsonl, `layer/3/maxvio` and `maxvio/mean`: maxvio,
/// load_entropy, dead_share; for the layers of `siblings` also effective_top_k and routing_overlap.
std::vector<Scalar> load_scalars(const step::StepReport& report,
                                 const std::map<int64_t, step::SiblingRouting>& siblings);

/// The same for sibling_cosine, from the master weights of an expanded model.
///
/// Memory   several ranks: the masters of one layer's experts on the first rank.
/// Ranks    collective over those of the model's division; the others than the first get nothing.
std::vector<Scalar> sibling_scalars(const nn::Decoder& model, const step::Optimizer& optimizer, const Parents& parents);

}  // namespace coppice::train
