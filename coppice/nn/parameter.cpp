#include "coppice/nn/parameter.h"

namespace coppice::nn {

bool Parameter::decays() const { return is_experts() || slices.front().slot.shape.size() > 1; }

}  // namespace coppice::nn
