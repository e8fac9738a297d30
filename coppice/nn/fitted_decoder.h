#pragma once

// A decoder with a memory limit. B sequences, S positions, T = B * S tokens, D model dimension.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "coppice/nn/layered_decoder.h"

namespace coppice::nn {

/// The forward functions of Decoder for a model of any size. If the model does not fit into memory, each call loads the
/// layers one after another, so a call should have as many sequences as fit. The bits are the same in both cases.
///
/// Memory   half of the limit for weights, the rest for activations; at least one layer and one pass of about 2,048
///          tokens.
/// Ranks    if it is divided, every call is collective over the expert group. Each rank has its own sequences of one
///          length, any number, also none: then it takes part in what the others compute.
class FittedDecoder {
 public:
  /// `model` must outlive this object. `max_memory_bytes` 0: half of the device's memory. Throws what Decoder throws.
  /// Ranks    collective over all ranks of the division: the lowest limit of them counts.
  FittedDecoder(const families::Model& model, ComputeDtype dtype, uint64_t max_memory_bytes,
                at::Device device = at::kCPU, Division division = {});

  const families::ModelConfig& config() const { return decoder_.config(); }
  const Division& division() const { return decoder_.division(); }
  bool is_whole() const { return whole_.has_value(); }
  /// The best number of sequences per call: `wanted` if the whole model is in memory, otherwise as many as fit.
  int64_t sequences_at_once(int64_t positions, int64_t wanted) const;

  /// Called with the output x_TD of the last layer for some sequences at a time, from sequence `first` on.
  using Visit = std::function<void(int64_t first, const LoadedHead& head, const at::Tensor& x_TD)>;
  void visit_outputs(const at::Tensor& tokens_BS, const ForwardOptions& options, const Visit& visit,
                     std::vector<LayerRouting>* routing = nullptr) const;

  /// The cross-entropy of each target, f32 [B, S] on the model's device; 0 for targets of -1.
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
  /// As many as the rank of the group with the most sequences has.
  int64_t num_passes(int64_t sequences, int64_t a_pass) const;

  LayeredDecoder decoder_;
  std::vector<Segment> segments_;
  uint64_t activation_bytes_ = 0;
  std::optional<Whole> whole_;
};

}  // namespace coppice::nn
