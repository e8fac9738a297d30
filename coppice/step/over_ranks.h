#pragma once

// What the ranks of a step share, besides gradients.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>

#include "coppice/dist/world.h"
#include "coppice/nn/decoder.h"

namespace coppice::step {

/// The ranks that train `model`; null if there is one.
dist::World* ranks_of(const nn::Decoder& model);

/// The windows of one forward pass on one rank, counted from the start of the batch.
struct PassWindows {
  int64_t first = 0, count = 0;
  int64_t left = 0;  ///< windows of the batch that no rank has read after this pass
};
/// The pass whose windows on all ranks start at window `begin` of a batch of `batch` windows. In each pass the ranks read
/// up to `micro_batch` windows each that lie one after another, so they compute what one rank does with a micro-batch
/// that is `ranks` times larger.
///
/// `batch` is divisible by `ranks`.
PassWindows pass_windows(int64_t begin, int64_t batch, int64_t micro_batch, int64_t rank, int64_t ranks);

/// The sums over ranks of int64 tensors on the model's device, in one collective; themselves on one rank.
std::map<int64_t, at::Tensor> sums_over_ranks(dist::World* world, const std::map<int64_t, at::Tensor>& counts);

}  // namespace coppice::step
