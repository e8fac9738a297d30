#pragma once

// Forward and backward passes over all calibration batches, with a few layers in memory at a time.

#include <cstdint>
#include <functional>
#include <vector>

#include "coppice/base/progress.h"
#include "coppice/nn/layered_decoder.h"
#include "coppice/score/batches.h"
#include "coppice/score/layer_sums.h"
#include "coppice/score/planes.h"

namespace coppice::score {

using nn::Segment;

/// Computes gradients of the mean token loss of each batch, from the last layer down. With one segment this is a pass
/// through the whole model. With several, all but the top segment run forward twice: once to keep the input of each
/// segment, and once more for the gradients.
///
/// Memory   the current segment with its gradients, and the planes.
/// Throws   Error{kNonFinite} if the loss is not finite; Error{kInterrupted}.
class LayeredPass {
 public:
  /// `activations` and `gradients` may hold planes of an earlier run. All arguments must outlive this object.
  LayeredPass(const nn::LayeredDecoder& decoder, const Batches& batches, Planes& activations, Planes& gradients);

  /// Called with the sums of its layers when a segment is done; the gradient of its input is then a plane.
  using Done = std::function<void(const Segment&, const SumsByLayer&)>;

  /// Computes layers [0, last). If `last` is below num_layers, `gradients` has the plane of boundary `last`.
  void run(int64_t last, uint64_t segment_bytes, bool has_moments, const Done& done);

 private:
  void forward(const Segment& segment);
  void backward(const Segment& segment, bool has_moments, const Done& done);
  at::Tensor input(const Pass& pass, const Segment& segment, const nn::LoadedEmbedding* embedding) const;
  void backward_from_loss(const Pass& pass, const nn::LoadedHead& head, const at::Tensor& x_TD);
  void advance(double share);

  const nn::LayeredDecoder& decoder_;
  const Batches& batches_;
  Planes& activations_;
  Planes& gradients_;
  std::vector<Pass> passes_;
  FiniteLosses losses_;
  int64_t lowest_moe_ = 0;
  bool is_whole_ = false;
  Progress progress_;
  double share_left_over_ = 0, shares_ = 1;
};

}  // namespace coppice::score
