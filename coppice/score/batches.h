#pragma once

// The calibration batches. B sequences of a pass, S positions.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "coppice/data/sampler.h"

namespace coppice::score {

/// Some windows of a batch that go through the model together.
struct Pass {
  uint64_t window = 0;           ///< the first, as the sampler counts
  int64_t row = 0, windows = 0;  ///< tokens before it, of these batches
  bool ends_batch = false;
};

/// The tokens of a pass.
struct PassTokens {
  at::Tensor tokens_BS, target_BS;
  at::Tensor start_BS;  ///< of documents, as ForwardOptions::document_start_BS; undefined where windows are whole
};

/// `count` batches of a sampler's windows, from window `first` on.
struct Batches {
  const data::Sampler& sampler;
  uint64_t first = 0, count = 0;
  int64_t windows_a_batch = 0;
  bool reset_attention = false;  ///< documents in a window do not see each other

  int64_t rows() const;              ///< tokens of all batches
  std::vector<Pass> passes() const;  ///< each of few enough tokens that their activations are small
  PassTokens read(const Pass& pass) const;
  /// Where the documents of a pass start; undefined unless `reset_attention`.
  at::Tensor document_starts(const Pass& pass) const;

  /// From the mean token loss of a pass: gradients of its share of the batch's.
  ///
  /// Throws   Error{kNonFinite} if the loss is not finite.
  void backward(const Pass& pass, const at::Tensor& loss) const;
};

}  // namespace coppice::score
