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
  int64_t batch = 1,
          micro_batch = 1;  ///< sequences per optimizer step, and per forward pass (the last pass may be smaller)
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

/// The routing of one MoE layer in a step. T tokens of the batch, E experts, K choices. Tensors of the host.
struct LayerLoad {
  at::Tensor count_E;   ///< int64, (token, slot) pairs
  at::Tensor index_TK;  ///< int64; only with keep_routing
};

/// Everything that the host learns of a step, in one transfer.
struct StepReport {
  double loss = 0;      ///< mean token loss of the batch
  double aux_loss = 0;  ///< for the loads and probabilities of the whole batch, without its coefficient
  double z_loss = 0;
  double lr = 0, grad_norm = 0;
  std::map<int64_t, LayerLoad> layers;  ///< by MoE layer
  at::Tensor token_T;                   ///< int64, the batch, on the host; only with keep_routing
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
/// forward pass counts them beforehand. The report's auxiliary loss is exact. The host waits for the model's device
/// once, when all passes are under way; before that it reads the first micro-batch of the next step.
/// Threads  at::get_num_threads().
/// Throws   Error{kNonFinite} naming the step if loss or gradient is NaN or infinite, GradientLimitError of that code
///          if the gradient is above the limit; Error{kFormat} naming the token file and position of an id outside the
///          model's vocabulary. After an exception nothing has changed.
StepReport train_step(nn::Decoder& model, Optimizer& optimizer, BatchReader& batches, const StepSettings& settings,
                      Position& position);

}  // namespace coppice::step
