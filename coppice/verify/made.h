#pragma once

#include <string>
#include <vector>

#include "coppice/base/progress.h"
#include "coppice/grow/grown_model.h"
#include "coppice/verify/verify.h"

namespace coppice::verify {

/// What made a model, for messages.
struct Maker {
  std::string name;       ///< "the expansion in coppice.json"
  bool complete = false;  ///< coppice wrote the whole directory, so nothing may be missing
};

/// Computes every tensor of weights and optimizer state that `made` makes from `before`, and compares it byte for byte
/// with the one in `after`. Tensors with other names (names.h) and experts in another layout are found by their role.
///
/// Memory   a window of 4 MiB per thread, or the largest piece that cannot be divided.
/// Threads  the result does not depend on the number of threads.
void compare_made(const grow::GrownModel& made, const families::Model& before, const families::Model& after,
                  const Maker& maker, size_t threads, Progress& progress, VerifyResult& result);

/// Whether the first router is the one that `made` computes; used to find which of several plans was carried out.
bool has_router_of(const grow::GrownModel& made, const families::Model& before, const families::Model& after);

/// Counts the router rows and biases of a layer that equal, or differ from, those of their expert's parent.
void count_rows(const families::Model& before, const families::Model& after, int64_t layer,
                const std::vector<int64_t>& parents, VerifyResult& result);

}  // namespace coppice::verify
