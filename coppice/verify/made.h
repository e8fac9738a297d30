#pragma once

#include <string>
#include <vector>

#include "coppice/base/progress.h"
#include "coppice/grow/grown_model.h"
#include "coppice/verify/verify.h"

namespace coppice::verify {

/// Who made a model, for what is said of it.
struct Maker {
  std::string name;       ///< "the expansion in coppice.json"
  bool complete = false;  ///< coppice wrote all of the directory, so that nothing of it may be missing
};

/// Compares every tensor that `made` makes of `before` with the one in `after`, byte for byte, weights and optimizer
/// state; tensors that have other names in `after` (names.h) and experts that it stacks otherwise are found by what they
/// are.
///
/// Memory   a window of 4 MiB per thread, or the largest piece that cannot be cut.
/// Threads  the same result for any number.
void compare_made(const grow::GrownModel& made, const families::Model& before, const families::Model& after,
                  const Maker& maker, size_t threads, Progress& progress, VerifyResult& result);

/// Whether the first router is the one that `made` makes: of several plans it tells which one was followed.
bool has_router_of(const grow::GrownModel& made, const families::Model& before, const families::Model& after);

/// Counts router rows and biases of a layer that are, and that are not, those of their expert's parent.
void count_rows(const families::Model& before, const families::Model& after, int64_t layer,
                const std::vector<int64_t>& parents, VerifyResult& result);

}  // namespace coppice::verify
