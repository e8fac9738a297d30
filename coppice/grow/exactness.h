#pragma once

#include "coppice/families/match.h"
#include "coppice/plan/plan.h"

namespace coppice::grow {

/// Whether the model that `plan` makes from `model` computes the same function with plain top-K, in every layer. The
/// answer uses the router rows and biases that the plan's methods compute, the methods of experts (and the experts
/// themselves if a method's parameters may leave them unchanged), and the order of children.
///
/// Memory   the routers before and after; one expert if its method may leave it unchanged.
/// Throws   what reading the model's routers throws; Error{kUnsupported} as `expand`.
/// Source   docs/expand.md, docs/families.md ("Routing classes").
plan::Exactness growth_exactness(const families::Model& model, const plan::GrowthPlan& plan);

}  // namespace coppice::grow
