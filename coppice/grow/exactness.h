#pragma once

#include "coppice/families/match.h"
#include "coppice/plan/plan.h"

namespace coppice::grow {

/// Whether the model that `plan` makes of `model` computes the same function as before under plain top-K, in every layer:
/// found from the router rows and biases that the plan's methods really make of the model's, from the methods of experts
/// (and from experts themselves where a method's parameters may leave them equal), and from the order of children.
///
/// Memory   the routers, before and after; one expert for a method that may change nothing.
/// Throws   what reading the model's routers throws; Error{kUnsupported} as `expand`.
/// Source   docs/expand.md, docs/families.md ("Routing classes").
plan::Exactness growth_exactness(const families::Model& model, const plan::GrowthPlan& plan);

}  // namespace coppice::grow
