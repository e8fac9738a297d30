#pragma once

// The rows of the table of router methods; each is defined beside its functions.

#include "coppice/base/rng.h"
#include "coppice/methods/router_init.h"

namespace coppice::methods {

inline constexpr std::string_view kRouterPaper = "arXiv:2604.19835";

extern const RouterInit kRouterCopy, kRouterCopyNoise, kRouterBiasOnly, kRouterDormant;   // router_init.cpp
extern const RouterInit kRouterPerturbNewOnly;                                            // router_init.cpp
extern const RouterInit kRouterInterpolate, kRouterScaledCopy, kRouterTemperatureScaled;  // router_rows.cpp
extern const RouterInit kRouterAdversarial, kRouterOrthogonal, kRouterSvdPerturb;         // router_rows.cpp

/// The random numbers of one child's row.
Rng row_rng(RouterTensor tensor, const RouterView& view, const LayerPlan& layer, const Child& child, uint64_t seed,
            uint32_t purpose);

}  // namespace coppice::methods
