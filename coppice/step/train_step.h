#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "coppice/base/error.h"
#include "coppice/nn/decoder.h"
#include "coppice/step/balance.h"
#include "coppice/step/batch_reader.h"
#include "coppice/step/optimizer.h"
#include "coppice/step/position.h"
#include "coppice/step/schedule.h"

namespace coppice::step {

/// The settings of a training step.
struct StepSettings {
  /// Sequences per optimizer step, of all ranks together, and per forward pass of one rank (the last pass may be
  /// smaller).
  int64_t batch = 1, micro_batch = 1;
  Schedule schedule;
  kernels::AdamwSettings adamw;  ///< lr comes from the schedule
  double clip = 0;               ///< gradients are scaled down to this norm; 0: never
  double gradient_limit = 0;     ///< a larger gradient norm stops the run; 0: never
  BalanceKind balance = BalanceKind::kNone;
  double balance_rate = 0;
  bool recentre = false;
  double aux_coef = 0, z_coef = 0;
  nn::BalanceForm balance_form = nn::BalanceForm::kPerLayer;  ///< of the auxiliary loss
  bool recompute = false;
  bool keep_routing = false;                          ///< report the experts that every token chose
  std::shared_ptr<const nn::LineageRouting> lineage;  ///< null: plain top-K
  std::optional<Waking> waking;                       ///< set while dormant copies wake; only with loss-free balancing
};

/// The routing of one MoE layer in a step. T tokens of this rank's part of the batch, E experts, K choices. Tensors of
/// the host.
struct LayerLoad {
  at::Tensor count_E;   ///< int64, (token, slot) pairs, of all ranks
  at::Tensor index_TK;  ///< int64; only with keep_routing
};

/// Everything that the host learns of a step, in one transfer.
struct StepReport {
  double loss = 0;      ///< mean token loss of the batch
  double aux_loss = 0;  ///< for the loads and probabilities of the whole batch, without its coefficient
  double z_loss = 0;
  double lr = 0, grad_norm = 0;
  std::map<int64_t, LayerLoad> layers;  ///< by MoE layer
  at::Tensor token_T;                   ///< int64, this rank's part of the batch, on the host; only with keep_routing
  bool is_stopped = false;              ///< a signal asked this rank, or another one, to stop
};

/// A gradient norm above the limit. The batch or the limit is the cause, so the steps before are good.
class GradientLimitError : public Error {
 public:
  using Error::Error;
};

/// One optimizer step: forward and backward passes over the batch at `position`, clipping, AdamW, balancing; then
/// advances `position`.
///
/// The batch is the next `batch` windows of `batches`; gradients are those of the mean over its tokens. The auxiliary loss
/// uses the loads of the whole batch. A micro-batch knows the loads up to itself; for the rest of the batch it uses
/// those of the batch before (`position.expert_counts`). For the first batch, and the first after an expansion, a
/// forward pass counts them beforehand. On several ranks, each reads an equal part of every pass (over_ranks.h), and the
/// loads are those of all ranks. The report's auxiliary loss is exact. The host waits for the model's device
/// once, when all passes are under way; before that it reads the first micro-batch of the next step.
/// Ranks    collective over those of the model's division; all get the same report, but for the parts that name a rank.
/// Threads  at::get_num_threads().
/// Throws   Error{kNonFinite} naming the step if loss or gradient is NaN or infinite, GradientLimitError of that code
///          if the gradient is above the limit; Error{kFormat} naming the token file and position of an id outside the
///          model's vocabulary. After an exception nothing has changed, but for Error{kPeer}, after which the model
///          cannot be used.
StepReport train_step(nn::Decoder& model, Optimizer& optimizer, BatchReader& batches, const StepSettings& settings,
                      Position& position);

}  // namespace coppice::step
