#pragma once

// A decoder that keeps to the memory it is given. B sequences, S positions, T = B * S tokens, D model dimension.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "coppice/nn/layered_decoder.h"

namespace coppice::nn {

/// The forward functions of Decoder for a model of any size: whole in memory if it fits, else its layers come and go
/// for every call, so that a call wants as many sequences as there is room for. The same bits either way.
///
/// Memory   half of what it is given for weights, the rest for activations; one layer and one pass of some 2,048 tokens
///          at least.
class FittedDecoder {
 public:
  /// `model` outlives this. `max_memory_bytes` 0: half of the machine's. Throws what Decoder throws.
  FittedDecoder(const families::Model& model, ComputeDtype dtype, uint64_t max_memory_bytes);

  const families::ModelConfig& config() const { return decoder_.config(); }
  bool is_whole() const { return whole_.has_value(); }
  /// How many sequences a call is best given: `wanted` if the model is whole, else what memory has room for.
  int64_t sequences_at_once(int64_t positions, int64_t wanted) const;

  /// Visits what comes out of the last layer, some sequences at a time: x_TD of those from `first` on.
  using Visit = std::function<void(int64_t first, const LoadedHead& head, const at::Tensor& x_TD)>;
  void visit_outputs(const at::Tensor& tokens_BS, const ForwardOptions& options, const Visit& visit,
                     std::vector<LayerRouting>* routing = nullptr) const;

  /// Each target's cross-entropy, f32 [B, S], 0 where it is -1.
  at::Tensor token_losses(const at::Tensor& tokens_BS, const at::Tensor& target_BS, const ForwardOptions& options,
                          std::vector<LayerRouting>* routing = nullptr) const;

  /// As Decoder's.
  at::Tensor sequence_loss(const at::Tensor& tokens_BS, const at::Tensor& target_BS, const ForwardOptions& options,
                           at::Tensor& counts_B, std::vector<LayerRouting>* routing = nullptr) const;

 private:
  struct Whole {
    LoadedEmbedding embedding;
    LoadedLayers layers;
    LoadedHead head;
  };
  LayeredDecoder decoder_;
  std::vector<Segment> segments_;
  uint64_t activation_bytes_ = 0;
  std::optional<Whole> whole_;
};

}  // namespace coppice::nn
