#pragma once

#include <vector>

#include "coppice/cost/memory.h"
#include "coppice/cost/step_time.h"

namespace coppice::cost::detail {

/// A decoder layer on one rank: seconds of its forward pass over a micro-batch, and the parameters that the rank holds.
struct LayerTime {
  double forward_s = 0;
  double others = 0, experts = 0;
  bool is_moe = false;
};

struct LayerTimes {
  std::vector<LayerTime> all;
  double head_forward_s = 0;
  double embedding = 0, head = 0;  ///< parameters; tied: all of them are the embedding's
  bool is_tied = false;
};

/// MoE layers are spread evenly among the others. `tokens`: of one micro-batch of one rank.
LayerTimes layer_times(const ModelSize& size, const Device& device, const Parallelism& parallelism,
                       const StateBytes& bytes, const StepWork& work, double tokens);

}  // namespace coppice::cost::detail
