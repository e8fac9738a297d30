#pragma once

// A decoder that may be larger than memory: only the requested weights of a checkpoint are loaded. B sequences, S
// positions, T = B * S tokens, V vocabulary, D model dimension.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "coppice/nn/decoder.h"

namespace coppice::nn {

/// Some consecutive layers, loaded.
class LoadedLayers {
 public:
  /// x after these layers, as in Decoder; the routing of the MoE layers is appended to `routing`, if given.
  ///
  /// Shapes   x_TD, B sequences of `positions` tokens; returns [T, D].
  at::Tensor run(const at::Tensor& x_TD, int64_t positions, const ForwardOptions& options,
                 std::vector<LayerRouting>* routing = nullptr) const;

  /// As the parameters of a Decoder; leaves that require grad.
  std::vector<Parameter>& parameters() { return parameters_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }

 private:
  friend class LayeredDecoder;
  const families::ModelConfig* config_ = nullptr;
  int64_t first_ = 0, last_ = 0;
  std::vector<Parameter> parameters_;
  std::map<int64_t, at::Tensor> selection_bias_;
  std::shared_ptr<detail::AngleCache> angles_;
  std::shared_ptr<const ExpertExchanges> exchanges_;
};

/// The embedding table, loaded.
class LoadedEmbedding {
 public:
  /// Shapes   tokens_BS int64, on the host; returns [T, D].
  /// Throws   Error{kFormat} for an id outside the vocabulary.
  at::Tensor embed(const at::Tensor& tokens_BS) const;

 private:
  friend class LayeredDecoder;
  const families::ModelConfig* config_ = nullptr;
  at::Tensor table_VD_;
};

/// The final norm and the output layer, loaded; their weights get no gradient. Targets come from the host.
class LoadedHead {
 public:
  /// Mean cross-entropy, differentiable in x; targets of -1 are ignored. Shapes x_TD after the last layer, target_T.
  at::Tensor loss(const at::Tensor& x_TD, const at::Tensor& target_T) const;
  /// The cross-entropy of each token, f32 [T]; 0 for targets of -1; without gradient.
  at::Tensor token_losses(const at::Tensor& x_TD, const at::Tensor& target_T) const;
  /// f32 [T, V], without gradient.
  at::Tensor logits(const at::Tensor& x_TD) const;

 private:
  friend class LayeredDecoder;
  const families::ModelConfig* config_ = nullptr;
  at::Tensor norm_D_, head_VD_;
};

/// Loads parts of a checkpoint's decoder to a device. Run one after another, they give results bit-equal to Decoder's.
///
/// Memory   the list of tensors; loaded parts belong to the caller.
/// Ranks    if it is divided, runs of loaded layers are collective over the expert group, as Decoder's functions.
class LayeredDecoder {
 public:
  /// `model` must outlive this object and the loaded parts. Throws what Decoder throws.
  LayeredDecoder(const families::Model& model, ComputeDtype dtype, at::Device device = at::kCPU,
                 Division division = {});

  const families::ModelConfig& config() const { return model_.config; }
  ComputeDtype dtype() const { return dtype_; }
  at::Device device() const { return device_; }
  const Division& division() const { return division_; }

  /// Of the rank with the most experts, so that all ranks have the same.
  struct LayerSize {
    uint64_t expert_elements = 0, other_elements = 0;
  };
  LayerSize size_of(int64_t layer) const;

  /// Layers [first, last).
  LoadedLayers load_layers(int64_t first, int64_t last) const;
  LoadedEmbedding load_embedding() const;
  LoadedHead load_head() const;

 private:
  std::map<families::Role, at::Tensor> load_outer(std::initializer_list<families::Role> roles) const;

  const families::Model& model_;
  ComputeDtype dtype_;
  at::Device device_;
  Division division_;
  std::shared_ptr<detail::AngleCache> angles_;
  std::shared_ptr<const ExpertExchanges> exchanges_;
  std::vector<std::vector<families::TensorSlot>> slots_;  // by layer; tensors outside layers at position num_layers
};

/// The number of sequences of `positions` tokens per pass, small enough that their activations take little memory.
int64_t sequences_a_pass(int64_t positions);

/// Consecutive layers [first, last) that are in memory together.
struct Segment {
  int64_t first = 0, last = 0;
};
enum class Purpose { kForward, kGradients };

/// The memory of a segment without activations: its weights, and for kGradients four f32 tensors of the size of its
/// experts' weights.
uint64_t segment_bytes(const LayeredDecoder& decoder, const Segment& segment, Purpose purpose);

/// Divides layers [0, last) into segments, from the bottom up; each has as many layers as fit into `bytes`, at least
/// one.
std::vector<Segment> plan_segments(const LayeredDecoder& decoder, int64_t last, uint64_t bytes, Purpose purpose);

}  // namespace coppice::nn
