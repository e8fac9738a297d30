#pragma once

// The calibration batches. B sequences per pass, S positions.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "coppice/data/sampler.h"
#include "coppice/score/finite_losses.h"

namespace coppice::score {

/// Some windows of a batch that go through the model together.
struct Pass {
  uint64_t window = 0;           ///< number of the first window, as the sampler counts
  int64_t row = 0, windows = 0;  ///< tokens of these batches before the pass
  bool ends_batch = false;
};

/// The tokens of a pass.
struct PassTokens {
  at::Tensor tokens_BS, target_BS;
  /// Start positions of documents, as ForwardOptions::document_start_BS; undefined without reset_attention.
  at::Tensor start_BS;
};

/// `count` batches of a sampler's windows, from window `first` on.
struct Batches {
  const data::Sampler& sampler;
  uint64_t first = 0, count = 0;
  int64_t windows_a_batch = 0;
  bool reset_attention = false;  ///< attention stays within a document

  int64_t rows() const;              ///< number of tokens of all batches
  std::vector<Pass> passes() const;  ///< passes short enough that their activations are small
  PassTokens read(const Pass& pass) const;
  /// Where the documents of a pass start; undefined unless `reset_attention`.
  at::Tensor document_starts(const Pass& pass) const;

  /// Backward pass from the mean token loss of a pass, weighted by its share of the batch.
  /// `losses` takes the loss, so that the host need not wait for the device; its finish() comes after the last pass.
  ///
  /// Throws   Error{kNonFinite} if the loss, or one before, is not finite.
  void backward(const Pass& pass, const at::Tensor& loss, FiniteLosses& losses) const;
  /// The same for one pass by itself; the host waits.
  void backward(const Pass& pass, const at::Tensor& loss) const;
};

}  // namespace coppice::score
