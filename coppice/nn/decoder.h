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
#include "coppice/nn/lineage.h"
#include "coppice/nn/parameter.h"
#include "coppice/nn/router.h"

namespace coppice::nn {

enum class ComputeDtype { kF32, kBf16 };

/// Fills one tensor's values (f32, [out, in] as on disk). From a checkpoint, or random.
using TensorFill = std::function<void(const families::TensorSlot& slot, std::span<float> values)>;

/// What the MoE layers did in one forward pass.
struct LayerRouting {
  int64_t layer = 0;
  at::Tensor count_E;        ///< int64, (token, slot) pairs per expert
  at::Tensor gate_mass_E;    ///< f64, sum of final gates before routed scaling
  at::Tensor balance_count;  ///< int64, what balancing looks at: count_E, or under lineage routing [L] per lineage
  at::Tensor balance_score;  ///< f32, sum over tokens of `balancing_distribution`, as balance_count; only with a loss
  at::Tensor index_TK;       ///< int64; only if ForwardOptions::keep_routing
  at::Tensor gate_TK;        ///< f32, final gates; only if ForwardOptions::with_output_sq, like the next two
  at::Tensor pair_sq_TK;     ///< f32, squared norm of what each chosen expert puts out, before its gate
  double output_sq = 0;      ///< sum over tokens of the squared norm of the routed experts' output
};

struct ForwardOptions {
  kernels::MoeKernel kernel = kernels::MoeKernel::kFast;
  bool recompute = false;    ///< keep only block inputs, compute the rest again in backward
  double aux_loss_coef = 0;  ///< of `balancing_loss` over the MoE layers (router.h), added to the token loss
  BalanceForm balance_form = BalanceForm::kPerLayer;
  /// Choices elsewhere in the batch, as LayerRouting::balance_count, that balancing adds to those of this pass, by layer.
  std::map<int64_t, at::Tensor> balance_count;
  double z_loss_coef = 0;
  bool keep_routing = false;
  bool with_output_sq = false;  ///< keep gates and the squared norms of outputs, too; implies keep_routing
  std::shared_ptr<const LineageRouting> lineage;  ///< lineage-unique top-K; null: plain top-K
  uint64_t first_token = 0;  ///< number of the first token in the run, which lineage routing draws by
  /// Where in its sequence the document of each token starts, int64, rising: no token sees beyond it, and positions count
  /// from it. Undefined: a sequence is one document.
  at::Tensor document_start_BS;
  /// Called with what enters the feed-forward part of each layer, [T, D].
  std::function<void(int64_t layer, const at::Tensor& x_TD)> visit_feed_forward;
  /// Called with what each router chose.
  std::function<void(int64_t layer, const Routed& routed)> visit_routing;
};

struct LossOutput {
  at::Tensor loss;                  ///< scalar f32: what to differentiate (token loss plus balancing terms)
  double token_loss = 0;            ///< mean cross-entropy in nats
  double aux_loss = 0, z_loss = 0;  ///< without their coefficients
  std::vector<LayerRouting> routing;
};

class Decoder {
 public:
  /// Throws   Error{kUnsupported} listing config.unsupported_in_nn, if any.
  Decoder(families::ModelConfig config, ComputeDtype dtype, const TensorFill& fill);
  /// Throws   Error{kNonFinite} naming the tensor; Error{kShape} where a dtype is not a floating-point type.
  static Decoder load(const families::Model& model, ComputeDtype dtype);

  const families::ModelConfig& config() const { return config_; }
  ComputeDtype dtype() const { return dtype_; }
  std::vector<Parameter>& parameters() { return parameters_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }

  /// Selection bias of a MoE layer, f32 [E]; undefined where the family has none. Not a parameter: balancing moves it.
  std::map<int64_t, at::Tensor>& selection_bias() { return selection_bias_; }
  const std::map<int64_t, at::Tensor>& selection_bias() const { return selection_bias_; }

  /// Shapes   tokens_BS int64; returns [B, S, V] f32.
  at::Tensor logits(const at::Tensor& tokens_BS, const ForwardOptions& options,
                    std::vector<LayerRouting>* routing = nullptr) const;

  /// Mean cross-entropy of target_BS given tokens_BS; targets of -1 do not count.
  LossOutput loss(const at::Tensor& tokens_BS, const at::Tensor& target_BS, const ForwardOptions& options) const;

  /// Sum of cross-entropy and number of counted targets, per sequence, without gradient. Returns [B] f64 sums; counts
  /// in `counts_B` int64.
  at::Tensor sequence_loss(const at::Tensor& tokens_BS, const at::Tensor& target_BS, const ForwardOptions& options,
                           at::Tensor& counts_B, std::vector<LayerRouting>* routing = nullptr) const;

  /// Every tensor on disk with its f32 (master) values, in the table's order; what checkpoints are written from.
  void visit(const std::function<void(const families::TensorSlot&, std::span<const float>)>& visitor) const;

 private:
  families::ModelConfig config_;
  ComputeDtype dtype_;
  std::vector<Parameter> parameters_;
  std::map<int64_t, at::Tensor> selection_bias_;
};

/// The parameter at (role, layer). Throws Error{kInternal} if absent.
const Parameter& find_parameter(const std::vector<Parameter>& parameters, families::Role role, int64_t layer = -1);

}  // namespace coppice::nn
