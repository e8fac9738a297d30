#pragma once

#include <vector>

#include "coppice/step/train_step.h"
#include "coppice/train/growth_course.h"
#include "coppice/train/tensorboard.h"

namespace coppice::train {

/// What metrics.jsonl says of each MoE layer and of their mean, `layer/3/maxvio` and `maxvio/mean`: maxvio,
/// load_entropy, dead_share; of a grown model also effective_top_k and routing_overlap, where `report` has the routing.
std::vector<Scalar> load_scalars(const step::StepReport& report, const Parents& parents);

/// The same of sibling_cosine, from the weights of a grown model.
std::vector<Scalar> sibling_scalars(const nn::Decoder& model, const Parents& parents);

}  // namespace coppice::train
