#pragma once

#include <optional>
#include <string>
#include <vector>

#include "coppice/families/model_config.h"
#include "coppice/io/checkpoint.h"

namespace coppice::families {

/// A tensor that the family's table expects (or found): its rule, layer and expert.
struct TensorSlot {
  std::string name;
  const TensorRule* rule = nullptr;
  int64_t layer = -1;   ///< -1 where the name has no {L}
  int64_t expert = -1;  ///< -1 where the name has no {X}
  std::vector<int64_t> shape;

  Role role() const { return rule->role; }
};

/// Every tensor that a model of this configuration has, in the table's order (layer by layer, expert by expert).
///
/// A shared expert of width 0 has tensors without elements, since transformers makes, saves and expects them.
std::vector<TensorSlot> expected_tensors(const ModelConfig& config);

/// The name of the tensor with this role; empty if the family has none there.
std::string tensor_name(const ModelConfig& config, Role role, int64_t layer = -1, int64_t expert = -1);

/// Places every tensor of the checkpoint, strictly both ways. Two things are let pass, as loaders do: tensors without
/// elements may be missing (and then have no slot), and the `rotary_emb.inv_freq` of old files, which follow from the
/// configuration, have no slot.
///
/// Throws   Error{kFormat} listing all tensors that no row matches and all required ones that are missing (the first 20
///          of each, then a count); Error{kShape} listing all with another shape than the configuration says.
std::vector<TensorSlot> match(const ModelConfig& config, const io::Checkpoint& checkpoint);

/// A checkpoint with its configuration and every tensor placed: what all commands start from.
struct Model {
  io::Checkpoint checkpoint;
  ModelConfig config;
  std::vector<TensorSlot> slots;

  /// io::model_digest with this family's router tensors.
  std::string digest() const;
};
Model open_model(const std::filesystem::path& directory);

/// Parameters as transformers' `sum(p.numel())` counts them: tied embeddings once, selection biases (buffers) not at
/// all.
struct ParameterCount {
  int64_t total = 0, active = 0;  ///< active: per token, top_k of the experts; embeddings included in both
  int64_t experts = 0, routers = 0, attention = 0, embeddings = 0, dense = 0, shared = 0, norms = 0;

  int64_t& part(Part part);
  int64_t part(Part p) const { return const_cast<ParameterCount*>(this)->part(p); }
};
ParameterCount count_parameters(const ModelConfig& config);

}  // namespace coppice::families
