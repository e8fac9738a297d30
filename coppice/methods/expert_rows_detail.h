#pragma once

// The rows of the table of expert methods; each is defined beside its functions.

#include "coppice/methods/expert_init.h"

namespace coppice::methods {

inline constexpr std::string_view kExpertUpcycling = "arXiv:2604.19835";

extern const ExpertInit kCopy, kCopyNoise, kScaledCopy, kInterpolate;  // expert_elementwise.cpp
extern const ExpertInit kDropUpcycle, kShuffleColumns;                 // expert_columns.cpp
extern const ExpertInit kDropUnits, kPermuteUnits;                     // expert_units.cpp
extern const ExpertInit kOrthogonal;                                   // expert_orthogonal.cpp
extern const ExpertInit kSvdPerturb, kSvdMix;                          // expert_svd.cpp
extern const ExpertInit kSparseCodeMix;                                // expert_sparse.cpp

}  // namespace coppice::methods
