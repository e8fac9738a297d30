#include "coppice/train/loop.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

// B sequences of a micro-batch, S positions, E experts.

namespace coppice::train {
namespace {

struct MicroBatch {
  at::Tensor tokens_BS, target_BS;
  at::Tensor start_BS;  // of documents; undefined unless asked for
};

MicroBatch read_batch(const data::Sampler& sampler, uint64_t first_sample, int64_t count, bool with_starts) {
  const int64_t length = sampler.sequence_length();
  MicroBatch out{at::empty({count, length}, at::kLong), at::empty({count, length}, at::kLong), {}};
  if (with_starts) out.start_BS = at::empty({count, length}, at::kLong);
  for (int64_t b = 0; b < count; ++b) {
    const auto row = [&](const at::Tensor& t) {
      return std::span(t.mutable_data_ptr<int64_t>() + b * length, static_cast<size_t>(length));
    };
    const uint64_t sample = first_sample + static_cast<uint64_t>(b);
    sampler.read(sample, row(out.tokens_BS), row(out.target_BS));
    if (with_starts) sampler.document_starts(sample, row(out.start_BS));
  }
  return out;
}

void require_finite(std::string_view what, double value, int64_t step) {
  if (std::isfinite(value)) return;
  throw Error(ErrorCode::kNonFinite, cat("step ", step, ": the ", what, " is ", value,
                                         "; training has diverged (lower optimizer.lr, lengthen schedule.warmup, "
                                         "or go on from the last good checkpoint with train.resume)"));
}

// Forward and backward over the whole batch. Gradients are left in the optimizer's sums; returns counts by layer.
std::map<int64_t, at::Tensor> accumulate_batch(nn::Decoder& model, Optimizer& optimizer, const data::Sampler& sampler,
                                               const StepSettings& settings, const Position& position,
                                               StepReport& report) {
  nn::ForwardOptions forward;
  forward.recompute = settings.recompute;
  forward.aux_loss_coef = settings.balance == BalanceKind::kAux ? settings.aux_coef : 0;
  forward.z_loss_coef = settings.z_coef;
  std::map<int64_t, at::Tensor> counts;
  for (int64_t begin = 0; begin < settings.batch; begin += settings.micro_batch) {
    const int64_t size = std::min(settings.micro_batch, settings.batch - begin);
    const uint64_t sample = position.next_sample + static_cast<uint64_t>(begin);
    const MicroBatch batch = read_batch(sampler, sample, size, settings.reset_attention);
    forward.document_start_BS = batch.start_BS;
    const nn::LossOutput out = model.loss(batch.tokens_BS, batch.target_BS, forward);
    require_finite("loss", out.token_loss, position.step + 1);
    const double share = static_cast<double>(size) / static_cast<double>(settings.batch);
    (out.loss * share).backward();
    optimizer.accumulate(model.parameters());
    report.loss += share * out.token_loss;
    report.aux_loss += share * out.aux_loss;
    report.z_loss += share * out.z_loss;
    for (const auto& layer : out.routing) {
      at::Tensor& sum_E = counts[layer.layer];
      sum_E = sum_E.defined() ? sum_E + layer.count_E : layer.count_E;
    }
  }
  return counts;
}

}  // namespace

StepReport train_step(nn::Decoder& model, Optimizer& optimizer, const data::Sampler& sampler,
                      const StepSettings& settings, Position& position) {
  StepReport report;
  optimizer.clear();
  const auto counts = accumulate_batch(model, optimizer, sampler, settings, position, report);
  report.grad_norm = optimizer.grad_norm();
  require_finite("gradient norm", report.grad_norm, position.step + 1);

  kernels::AdamwSettings adamw = settings.adamw;
  adamw.lr = report.lr = settings.schedule.rate(position.step + 1);
  optimizer.step(model.parameters(), adamw, report.grad_norm, settings.clip);
  for (const auto& [layer, count_E] : counts) {
    report.max_violation[layer] = max_violation(count_E);
    if (settings.balance != BalanceKind::kLossFree) continue;
    update_selection_bias(model.selection_bias().at(layer), count_E, settings.balance_rate, settings.recentre);
  }

  position.step += 1;
  position.next_sample += static_cast<uint64_t>(settings.batch);
  position.tokens_seen += static_cast<uint64_t>(settings.batch * sampler.sequence_length());
  position.recent_losses.push_back(report.loss);
  if (position.recent_losses.size() > Position::kRecentLosses) {
    position.recent_losses.erase(position.recent_losses.begin());
  }
  return report;
}

}  // namespace coppice::train
