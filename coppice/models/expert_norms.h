#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "coppice/families/match.h"

namespace coppice::models {

/// L2 norms of one expert's matrices and of its router row, summed in f64.
struct ExpertNorms {
  double gate = 0, up = 0, down = 0, router = 0;
};

/// Norms of every expert: layer -> [experts].
///
/// Memory   one matrix in fp32 per thread.
/// Threads  the result does not depend on their number.
/// Throws   Error{kShape} if a dtype is not a floating-point type; Error{kInterrupted}.
std::map<int64_t, std::vector<ExpertNorms>> expert_norms(const families::Model& model, size_t threads);

}  // namespace coppice::models
