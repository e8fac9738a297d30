#pragma once

// A decoder-only language model built from a family's table. B sequences, S positions, T = B * S tokens, V vocabulary,
// D model dimension.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/kernels/moe.h"
#include "coppice/nn/division.h"
#include "coppice/nn/expert_exchange.h"
#include "coppice/nn/lineage.h"
#include "coppice/nn/parameter.h"
#include "coppice/nn/router.h"

namespace coppice::nn {

enum class ComputeDtype { kF32, kBf16 };
/// "f32" or "bf16", as the option --dtype names it. Throws Error{kUsage}.
ComputeDtype compute_dtype(std::string_view name);

namespace detail {
class AngleCache;
}

/// Fills one tensor's values (f32, [out, in] as on disk). From a checkpoint, or random. A rank of an expert group asks
/// for the parts of its own experts in a stack, one by one: then `slot.expert` is set, and `values` are those of its part
/// (`part_of`).
using TensorFill = std::function<void(const families::TensorSlot& slot, std::span<float> values)>;

/// The elements of fp32 masters that a rank keeps, one entry a parameter. The values of `parameters` have their shapes, but
/// are not filled.
struct KeptElements {
  int64_t first = 0, count = 0;
};
using KeepMasters = std::function<std::vector<KeptElements>(const std::vector<Parameter>& parameters)>;

/// The routing of an MoE layer in one forward pass; its tensors are on the model's device.
struct LayerRouting {
  int64_t layer = 0;
  at::Tensor count_E;      ///< int64, (token, slot) pairs per expert
  at::Tensor gate_mass_E;  ///< f64, sum of final gates before routed scaling
  /// int64, the counts for balancing: count_E, or [L] per lineage under lineage-unique routing.
  at::Tensor balance_count;
  at::Tensor balance_score;  ///< f32, sum over tokens of `balancing_distribution`, as balance_count; only with a loss
  at::Tensor index_TK;       ///< int64; only if ForwardOptions::keep_routing
  at::Tensor gate_TK;        ///< f32, final gates; only if ForwardOptions::with_output_sq, like the next two
  at::Tensor pair_sq_TK;     ///< f32, squared norm of each chosen expert's output, before its gate
  at::Tensor output_sq;      ///< f64 scalar, sum over tokens of the squared norm of the routed experts' output
};

struct ForwardOptions {
  kernels::MoeKernel kernel = kernels::MoeKernel::kFast;
  bool recompute = false;    ///< keep only block inputs and recompute the rest in the backward pass
  double aux_loss_coef = 0;  ///< coefficient of E * sum_e f_e P_e, the `balancing_loss` over the MoE layers (router.h)
  BalanceForm balance_form = BalanceForm::kPerLayer;
  /// Counts from the rest of the batch, as LayerRouting::balance_count, that the balancing loss adds to those of this
  /// pass; by layer.
  std::map<int64_t, at::Tensor> balance_count;
  double z_loss_coef = 0;
  bool keep_routing = false;
  bool with_output_sq = false;  ///< also keep gates and squared norms of outputs; implies keep_routing
  std::shared_ptr<const LineageRouting> lineage;  ///< lineage-unique top-K; null: plain top-K
  uint64_t first_token = 0;  ///< number of the first token in the run, used to select tokens for lineage-unique routing
  /// The position in its sequence where the document of each token starts, int64, rising: attention stays within the
  /// document, and positions restart at 0. Undefined: each sequence is one document.
  at::Tensor document_start_BS;
  /// Called before the parameters of a layer are read first in the forward pass, in this order: -1 (the embedding), the
  /// layers, num_layers (the final norm and the output layer, which may be the embedding again). Recomputation does not
  /// call it again.
  std::function<void(int64_t layer)> before_layer;
  /// Called with the input of the feed-forward part of each layer, [T, D].
  std::function<void(int64_t layer, const at::Tensor& x_TD)> visit_feed_forward;
  /// Called with the choices of each router.
  std::function<void(int64_t layer, const Routed& routed)> visit_routing;
};

/// Scalars, f32, on the model's device: reading one (`number` of host.h) waits for it.
struct LossOutput {
  at::Tensor loss;              ///< to differentiate: token loss plus balancing terms
  at::Tensor token_loss;        ///< mean cross-entropy in nats; without gradient, like the next two
  at::Tensor aux_loss, z_loss;  ///< without their coefficients; undefined unless asked for
  std::vector<LayerRouting> routing;
};

/// If it is divided over ranks, its forward functions and their backward passes are collective over the expert group
/// (expert_exchange.h): all ranks of a group make the same calls, each for its own sequences, of any number. The
/// balancing loss counts the tokens of all ranks, for which `loss` is collective over all of them if it is asked for;
/// everything else that is returned is of the rank's own tokens.
///
/// Its tensors and its results are on one device, and it runs there. Tokens, targets and starts of documents come from
/// the host, which checks them before it sends them; from pinned memory it does not wait for that.
class Decoder {
 public:
  /// Where values are bf16, masters are cut to what `keep` says, each as soon as it is filled: flat; empty: all.
  ///
  /// Memory   with `keep`, besides the result the master of one parameter.
  /// Throws   Error{kUnsupported} listing config.unsupported_in_nn, if any.
  /// Ranks    `division` says which experts this rank has; it reads no others. Nothing is communicated.
  Decoder(families::ModelConfig config, ComputeDtype dtype, const TensorFill& fill, at::Device device = at::kCPU,
          Division division = {}, const KeepMasters& keep = {});
  /// Throws   Error{kNonFinite} naming the tensor; Error{kShape} if a dtype is not a floating-point type.
  static Decoder load(const families::Model& model, ComputeDtype dtype, at::Device device = at::kCPU,
                      Division division = {}, const KeepMasters& keep = {});

  const families::ModelConfig& config() const { return config_; }
  const Division& division() const { return division_; }
  /// The division of an expanded model, as set_config.
  void set_division(Division division);
  ComputeDtype dtype() const { return dtype_; }
  at::Device device() const { return device_; }
  std::vector<Parameter>& parameters() { return parameters_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  /// The configuration of an expanded model, after its parameters and selection biases have been replaced.
  void set_config(families::ModelConfig config) { config_ = std::move(config); }

  /// The selection bias of each MoE layer, f32 [E]; undefined if the family has none. It is not a parameter: balancing
  /// changes it.
  std::map<int64_t, at::Tensor>& selection_bias() { return selection_bias_; }
  const std::map<int64_t, at::Tensor>& selection_bias() const { return selection_bias_; }

  /// Shapes   tokens_BS int64; returns [B, S, V] f32.
  at::Tensor logits(const at::Tensor& tokens_BS, const ForwardOptions& options,
                    std::vector<LayerRouting>* routing = nullptr) const;

  /// Mean cross-entropy of target_BS given tokens_BS; targets of -1 are ignored. Waits only as kernels::moe_experts does.
  LossOutput loss(const at::Tensor& tokens_BS, const at::Tensor& target_BS, const ForwardOptions& options) const;

  /// Sum of cross-entropy and number of counted targets, per sequence, without gradient. Returns [B] f64 sums; counts
  /// in `counts_B` int64, on the host. B may be 0: then a rank takes part in what the others of its expert group compute.
  at::Tensor sequence_loss(const at::Tensor& tokens_BS, const at::Tensor& target_BS, const ForwardOptions& options,
                           at::Tensor& counts_B, std::vector<LayerRouting>* routing = nullptr) const;

  /// Visits every tensor on disk with its f32 (master) values, in the table's order; used to write checkpoints. Those
  /// of a device are copied to the host one by one. A rank of an expert group visits the tensors of its own experts and,
  /// of a stack, the parts of those, one by one, as a TensorFill.
  void visit(const std::function<void(const families::TensorSlot&, std::span<const float>)>& visitor) const;

 private:
  families::ModelConfig config_;
  ComputeDtype dtype_;
  at::Device device_;
  Division division_;
  std::vector<Parameter> parameters_;
  std::map<int64_t, at::Tensor> selection_bias_;
  std::shared_ptr<detail::AngleCache> angles_;
  std::shared_ptr<const ExpertExchanges> exchanges_;
};

/// The part of a stack of all experts' tensors that belongs to one expert.
template <class T>
std::span<T> part_of(const families::TensorSlot& slot, std::span<T> stack, int64_t num_experts) {
  const size_t size = stack.size() / static_cast<size_t>(num_experts);
  return stack.subspan(static_cast<size_t>(slot.expert) * size, size);
}

/// The parameter at (role, layer). Throws Error{kInternal} if absent.
const Parameter& find_parameter(const std::vector<Parameter>& parameters, families::Role role, int64_t layer = -1);

}  // namespace coppice::nn
