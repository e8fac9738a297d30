#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coppice/families/model_config.h"
#include "coppice/families/quantization.h"
#include "coppice/io/checkpoint.h"

namespace coppice::families {

/// A tensor that the family's table expects (or found): its rule, layer and expert. Name and shape as in
/// io::TensorInfo.
struct TensorSlot {
  io::TensorName name;
  const TensorRule* rule = nullptr;
  int64_t layer = -1;   ///< -1 if the name has no {L}
  int64_t expert = -1;  ///< -1 if the name has no {X}
  io::TensorShape shape;
  size_t expert_at = 0;  ///< position of the expert's number in the name

  Role role() const { return rule->role; }
};

/// The name of this tensor for another expert.
std::string name_for_expert(const TensorSlot& slot, int64_t expert);

/// Every tensor that a model of this configuration has, in the table's order (layer by layer, expert by expert). Not
/// for models whose tensors are determined by the weights.
///
/// A shared expert of width 0 has tensors without elements, because transformers makes, saves and expects them.
std::vector<TensorSlot> expected_tensors(const ModelConfig& config);

/// The name without the prefix that multimodal models put before those of their language model: "model.layers.0..." of
/// "model.language_model.layers.0...".
std::string without_text_prefix(std::string_view name);

/// The name of the tensor with this role; empty if the family has none there.
std::string tensor_name(const ModelConfig& config, Role role, int64_t layer = -1, int64_t expert = -1);

/// Assigns a rule to every tensor of the checkpoint; unknown and missing tensors are errors. There are two exceptions,
/// as in other loaders: tensors without elements may be missing (and then have no slot), and `rotary_emb.inv_freq` of
/// old files, which follows from the configuration, has no slot.
///
/// For expand-only families, and for the language model inside a multimodal one, the weights determine which tensors
/// exist. Each must match a rule, and every MoE layer must have all its experts and router tensors.
///
/// Throws   Error{kFormat} listing all tensors that no row matches and all required ones that are missing (the first 20
///          of each, then a count), and the family that places more of them; Error{kShape} listing all with another
///          shape than the configuration says.
std::vector<TensorSlot> match(const ModelConfig& config, const io::Checkpoint& checkpoint);

/// Completes a configuration where the tensors decide: which layers have experts, which biases a router has.
void fill_in_from(const std::vector<TensorSlot>& slots, ModelConfig& config);

/// The quantised form of a model that is read as if its matrices were in bf16.
struct StoredForm {
  std::string quantisation;
  std::vector<TensorSlot> slots;                                ///< of the tensors as they are stored
  std::map<std::string, QuantisedTensor, std::less<>> tensors;  ///< by the name of the bf16 tensor
};

/// A checkpoint with its configuration and the rule of every tensor. All commands start from it.
struct Model {
  io::Checkpoint checkpoint;
  ModelConfig config;
  std::vector<TensorSlot> slots;
  /// In rising order; includes those past num_layers: decoders, multi-token prediction.
  std::vector<int64_t> layers_with_experts = {};

  /// Set by grow::dequantised: configuration and slots are those of the bf16 model, the checkpoint has this form.
  std::shared_ptr<const StoredForm> stored = {};

  /// The parts of the tensor if it is computed from them; nullptr if it is stored as it is.
  const QuantisedTensor* quantised(std::string_view name) const;
  /// The slots of the tensors that the checkpoint has.
  const std::vector<TensorSlot>& stored_slots() const { return stored ? stored->slots : slots; }
  /// Dtype, shape and bytes of a slot's tensor, stored or computed.
  io::TensorInfo info_of(std::string_view name) const;
  /// io::model_digest with this family's router tensors.
  std::string digest() const;
};
/// Throws   what io::Checkpoint::open, read_config and match throw; for an unknown model_type the error also names the
///          family with the most similar tensors. A given `family` must outlive the result.
Model open_model(const std::filesystem::path& directory, const Family* family = nullptr);

/// The same for an open checkpoint.
Model make_model(io::Checkpoint checkpoint, ModelConfig config);

/// The bf16 model with this configuration and these tensors, which are computed from those of `stored`; the caller sets
/// Model::stored.
///
/// Throws   as match and read_config.
Model with_tensors(Model stored, const Json& config, std::span<const io::TensorInfo> tensors);

/// Parameters as transformers' `sum(p.numel())` counts them: tied embeddings once, selection biases (buffers) not at
/// all.
struct ParameterCount {
  int64_t total = 0, active = 0;  ///< active: per token, top_k of the experts; embeddings included in both
  int64_t experts = 0, routers = 0, attention = 0, embeddings = 0, dense = 0, shared = 0, norms = 0, other = 0;

  int64_t& component(Component which);
  int64_t component(Component which) const { return const_cast<ParameterCount*>(this)->component(which); }
};
ParameterCount count_parameters(const ModelConfig& config);
/// Counts the parameters for `num_experts` experts per layer (0: the actual number). MTP layers and block scales are
/// not counted, and packed mxfp4 counts as two values per byte.
ParameterCount count_parameters(const Model& model, int64_t num_experts = 0);

}  // namespace coppice::families
