#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "coppice/base/error.h"
#include "coppice/data/sampler.h"
#include "coppice/nn/decoder.h"
#include "coppice/step/balance.h"
#include "coppice/step/optimizer.h"
#include "coppice/step/position.h"
#include "coppice/step/schedule.h"

namespace coppice::step {

/// What a training step does, apart from model and data.
struct StepSettings {
  int64_t batch = 1, micro_batch = 1;  ///< sequences an optimizer step and a forward pass; the last pass may have fewer
  Schedule schedule;
  kernels::AdamwSettings adamw;  ///< lr comes from the schedule
  double clip = 0;               ///< gradients are scaled down to this norm, 0: never
  double gradient_limit = 0;     ///< a larger norm ends the run, 0: none does
  BalanceKind balance = BalanceKind::kNone;
  double balance_rate = 0;
  bool recentre = false;
  double aux_coef = 0, z_coef = 0;
  nn::BalanceForm balance_form = nn::BalanceForm::kPerLayer;  ///< of the auxiliary loss
  bool recompute = false;
  bool reset_attention = false;                       ///< documents in a sequence do not see each other
  bool keep_routing = false;                          ///< StepReport says which experts every token chose
  std::shared_ptr<const nn::LineageRouting> lineage;  ///< null: plain top-K
  std::optional<Waking> waking;                       ///< while dormant copies wake; loss-free balancing only
};

/// What one MoE layer did in a step. T tokens of the batch, E experts, K choices.
struct LayerLoad {
  at::Tensor count_E;        ///< int64, (token, slot) pairs
  at::Tensor balance_count;  ///< int64, by lineage under lineage routing, else count_E
  at::Tensor balance_score;  ///< f64, sum over tokens of what the auxiliary loss spreads evenly; only with that loss
  at::Tensor index_TK;       ///< int64; only with keep_routing
};

struct StepReport {
  double loss = 0;      ///< mean token loss of the batch
  double aux_loss = 0;  ///< of the whole batch's loads and probabilities, before its coefficient
  double z_loss = 0;
  double lr = 0, grad_norm = 0;
  std::map<int64_t, LayerLoad> layers;  ///< by MoE layer
  at::Tensor token_T;                   ///< int64, the batch; only with keep_routing
};

/// A gradient norm above the limit: the batch is at fault or the limit, not the steps before.
class GradientLimitError : public Error {
 public:
  using Error::Error;
};

/// One optimizer step: forward and backward over the batch at `position`, clipping, AdamW, balancing; then moves
/// `position` on.
///
/// The batch is the sampler's next `batch` windows; gradients are those of the mean over its tokens. The auxiliary loss
/// is that of the batch's loads; a micro-batch knows the choices up to it, and for the share that is left expects those
/// of the batch before (`position.expert_counts`; of the first batch, and of the first after a growth, a forward pass
/// counts them beforehand). The report's auxiliary loss is exact.
/// Threads  at::get_num_threads().
/// Throws   Error{kNonFinite} naming the step if loss or gradient is NaN or infinite, GradientLimitError of that code
///          if the gradient is above the limit; Error{kFormat} naming the token file and position of an id that the
///          model has not; nothing has changed then.
StepReport train_step(nn::Decoder& model, Optimizer& optimizer, const data::Sampler& sampler,
                      const StepSettings& settings, Position& position);

}  // namespace coppice::step
