#pragma once

#include <functional>
#include <vector>

#include "coppice/score/calibration.h"
#include "coppice/upcycle/utility.h"

namespace coppice::score {

/// [E]: sum of v^2 of Adam's second moment over each expert's part; null where there is no optimizer state.
using SecondMoments = std::function<std::vector<double>(const nn::Parameter&)>;

/// Fills the metrics of `scores` from a calibration over `scores.batches` batches.
void collect(const Calibration& calibration, upcycle::Scores& scores, const SecondMoments& moments);

}  // namespace coppice::score
