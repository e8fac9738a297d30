#include "coppice/step/train_step.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/nn/host.h"

// B sequences of a micro-batch, S positions, E experts.

namespace coppice::step {
namespace {

// The routing of one MoE layer in the micro-batches so far, on the model's device.
struct LayerSums {
  at::Tensor count_E;                // int64, (token, slot) pairs
  at::Tensor balance_count;          // int64, per lineage under lineage-unique routing, else count_E
  at::Tensor balance_score;          // f64, sum over tokens of the scores in the auxiliary loss; only with that loss
  std::vector<at::Tensor> index_TK;  // of each micro-batch; only with keep_routing
};
using SumsByLayer = std::map<int64_t, LayerSums>;

// What the passes over a batch leave on the model's device besides gradients.
struct BatchSums {
  SumsByLayer layers;
  std::vector<at::Tensor> token_loss, z_loss;  // scalars, f64, of each micro-batch; z_loss only if asked for
  std::vector<double> share;                   // of each micro-batch in the batch
  std::vector<at::Tensor> token_T;             // on the host; only with keep_routing
  at::Tensor aux_loss;                         // of the whole batch; undefined unless asked for
};

void require_finite(std::string_view what, double value, int64_t step) {
  if (std::isfinite(value)) return;
  throw Error(ErrorCode::kNonFinite, cat("step ", step, ": the ", what, " is ", value,
                                         "; training has diverged (lower optimizer.lr, lengthen schedule.warmup, "
                                         "or continue from the last good checkpoint with train.resume)"));
}

void add_to(at::Tensor& sum, const at::Tensor& more) { sum = sum.defined() ? sum + more : more; }

void add_load(SumsByLayer& sums, const nn::LayerRouting& routing) {
  LayerSums& layer = sums[routing.layer];
  add_to(layer.count_E, routing.count_E);
  add_to(layer.balance_count, routing.balance_count);
  if (routing.balance_score.defined()) add_to(layer.balance_score, routing.balance_score.to(at::kDouble));
  if (routing.index_TK.defined()) layer.index_TK.push_back(routing.index_TK);
}

// Calls `visit` with each micro-batch, the options of its forward pass in `forward`, and its number of sequences.
template <class Visit>
void for_each_micro_batch(BatchReader& batches, const StepSettings& settings, const Position& position,
                          nn::ForwardOptions& forward, const Visit& visit) {
  for (int64_t begin = 0; begin < settings.batch; begin += settings.micro_batch) {
    const int64_t size = std::min(settings.micro_batch, settings.batch - begin);
    const uint64_t sample = position.next_sample + static_cast<uint64_t>(begin);
    const MicroBatch batch = batches.take(sample, size);
    forward.document_start_BS = batch.start_BS;
    forward.first_token = sample * static_cast<uint64_t>(batches.sequence_length());
    visit(batch, size);
  }
}

bool counts_all_experts(const Position& position, const families::ModelConfig& config) {
  if (std::ssize(position.expert_counts) != config.num_moe_layers()) return false;
  return std::ranges::all_of(position.expert_counts, [&](const auto& entry) {
    const auto& [layer, counts] = entry;
    return layer < config.num_layers && config.moe_layer[static_cast<size_t>(layer)] &&
           std::ssize(counts) == config.num_experts;
  });
}

std::map<int64_t, std::vector<int64_t>> expert_counts(const std::map<int64_t, LayerLoad>& layers) {
  std::map<int64_t, std::vector<int64_t>> out;
  for (const auto& [layer, load] : layers) out[layer] = nn::to_host<int64_t>(load.count_E);
  return out;
}

// The number of times each expert is chosen in this batch, counted by a forward pass; on the model's device.
std::map<int64_t, at::Tensor> count_batch(const nn::Decoder& model, BatchReader& batches, const StepSettings& settings,
                                          const Position& position) {
  SumsByLayer counted;
  nn::ForwardOptions forward;
  forward.lineage = settings.lineage;
  for_each_micro_batch(batches, settings, position, forward, [&](const MicroBatch& batch, int64_t) {
    std::vector<nn::LayerRouting> routing;
    at::Tensor targets_B;
    (void)model.sequence_loss(batch.tokens_BS, batch.target_BS, forward, targets_B, &routing);
    for (const auto& layer : routing) add_load(counted, layer);
  });
  std::map<int64_t, at::Tensor> out;
  for (const auto& [layer, sums] : counted) out[layer] = sums.count_E;
  return out;
}

// Those of the batch before.
std::map<int64_t, at::Tensor> counts_before(const Position& position, at::Device device) {
  std::map<int64_t, at::Tensor> out;
  for (const auto& [layer, counts] : position.expert_counts) {
    out[layer] = nn::from_host<int64_t>(counts, {std::ssize(counts)}, device);
  }
  return out;
}

// The expected loads of the rest of a batch: those of the batch before or, if unknown, those of this batch counted
// beforehand. Per expert, or per lineage under lineage-unique routing; f64.
std::map<int64_t, at::Tensor> expected_counts(const nn::Decoder& model, BatchReader& batches,
                                              const StepSettings& settings, const Position& position) {
  auto out = counts_all_experts(position, model.config()) ? counts_before(position, model.device())
                                                          : count_batch(model, batches, settings, position);
  for (auto& [layer, count] : out) {
    if (settings.lineage) count = settings.lineage->lineage->sums(layer, count);
    count = count.to(at::kDouble);
  }
  return out;
}

// The loads of the earlier micro-batches, plus the expected loads of the micro-batches after this one.
std::map<int64_t, at::Tensor> counts_elsewhere(const std::map<int64_t, at::Tensor>& expected, const SumsByLayer& layers,
                                               double share_left) {
  std::map<int64_t, at::Tensor> out;
  for (const auto& [layer, count] : expected) {
    const auto before = layers.find(layer);
    out[layer] = count * share_left;
    if (before != layers.end()) out[layer] = out[layer] + before->second.balance_count;
  }
  return out;
}

// The auxiliary loss of the whole batch.
at::Tensor batch_aux_loss(const SumsByLayer& layers, int64_t tokens, int64_t top_k, nn::BalanceForm form) {
  std::vector<nn::LayerBalance> balance;
  for (const auto& [layer, sums] : layers) balance.push_back({sums.balance_score, sums.balance_count});
  return nn::balancing_loss(balance, tokens, top_k, form);
}

// Forward and backward passes over the whole batch, which the device may still be busy with afterwards. Leaves the
// gradients in the optimizer's sums.
BatchSums accumulate_batch(nn::Decoder& model, Optimizer& optimizer, BatchReader& batches, const StepSettings& settings,
                           const Position& position) {
  nn::ForwardOptions forward;
  forward.recompute = settings.recompute;
  forward.aux_loss_coef = settings.balance == BalanceKind::kAux ? settings.aux_coef : 0;
  forward.balance_form = settings.balance_form;
  forward.z_loss_coef = settings.z_coef;
  forward.keep_routing = settings.keep_routing;
  forward.lineage = settings.lineage;
  const bool with_aux_loss = forward.aux_loss_coef != 0;
  std::map<int64_t, at::Tensor> expected;
  if (with_aux_loss && settings.micro_batch < settings.batch) {
    expected = expected_counts(model, batches, settings, position);
  }
  BatchSums sums;
  int64_t left = settings.batch;
  for_each_micro_batch(batches, settings, position, forward, [&](const MicroBatch& batch, int64_t size) {
    left -= size;
    const double share_left = static_cast<double>(left) / static_cast<double>(settings.batch);
    if (!expected.empty()) forward.balance_count = counts_elsewhere(expected, sums.layers, share_left);
    const nn::LossOutput out = model.loss(batch.tokens_BS, batch.target_BS, forward);
    const double share = static_cast<double>(size) / static_cast<double>(settings.batch);
    (out.loss * share).backward();
    optimizer.accumulate(model.parameters());
    sums.share.push_back(share);
    sums.token_loss.push_back(out.token_loss.to(at::kDouble));
    if (out.z_loss.defined()) sums.z_loss.push_back(out.z_loss.to(at::kDouble));
    for (const auto& layer : out.routing) add_load(sums.layers, layer);
    if (settings.keep_routing) sums.token_T.push_back(batch.tokens_BS.view({-1}));
  });
  if (with_aux_loss) {
    sums.aux_loss = batch_aux_loss(sums.layers, settings.batch * batches.sequence_length(), model.config().top_k,
                                   settings.balance_form);
  }
  return sums;
}

// Brings what the device knows of the step to the host, in one transfer.
//
// Throws   Error{kNonFinite} if a loss or the gradient norm is not finite.
StepReport read_report(const BatchSums& sums, const at::Tensor& grad_norm, int64_t step) {
  std::vector<at::Tensor> there{at::stack(sums.token_loss), grad_norm};
  if (sums.aux_loss.defined()) there.push_back(sums.aux_loss);
  if (!sums.z_loss.empty()) there.push_back(at::stack(sums.z_loss));
  for (const auto& [layer, of_layer] : sums.layers) {
    there.push_back(of_layer.count_E);
    if (!of_layer.index_TK.empty()) there.push_back(at::cat(of_layer.index_TK));
  }
  const auto here = nn::on_host_together(there);

  auto next = here.begin();
  const auto by_share = [&](std::span<const double> values) {
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) sum += sums.share[i] * values[i];
    return sum;
  };
  StepReport report;
  const auto losses = nn::host_values<double>(*next++);
  for (const double loss : losses) require_finite("loss", loss, step);
  report.loss = by_share(losses);
  report.grad_norm = nn::number(*next++);
  require_finite("gradient norm", report.grad_norm, step);
  if (sums.aux_loss.defined()) report.aux_loss = nn::number(*next++);
  if (!sums.z_loss.empty()) report.z_loss = by_share(nn::host_values<double>(*next++));
  for (const auto& [layer, of_layer] : sums.layers) {
    LayerLoad& load = report.layers[layer];
    load.count_E = *next++;
    if (!of_layer.index_TK.empty()) load.index_TK = *next++;
  }
  if (!sums.token_T.empty()) report.token_T = at::cat(sums.token_T);
  return report;
}

// Moves the selection biases after a step, by the loads of its batch.
void balance_without_loss(nn::Decoder& model, const SumsByLayer& layers, const StepSettings& settings) {
  for (const auto& [layer, sums] : layers) {
    const at::Tensor& bias_E = model.selection_bias().at(layer);
    at::Tensor group_E, count = sums.balance_count;
    if (settings.waking) {
      const nn::Lineage& lineage = *settings.waking->lineage;
      group_E = lineage.on(bias_E.device(), layer).parent_E;
      count = lineage.sums(layer, sums.count_E);
      wake(bias_E, group_E, lineage.num_lineages(), settings.waking->steps_left);
    } else if (settings.lineage) {
      group_E = settings.lineage->lineage->on(bias_E.device(), layer).parent_E;
    }
    update_selection_bias(bias_E, count, group_E, settings.balance_rate, settings.recentre);
  }
}

}  // namespace

StepReport train_step(nn::Decoder& model, Optimizer& optimizer, BatchReader& batches, const StepSettings& settings,
                      Position& position) {
  optimizer.clear();
  const BatchSums sums = accumulate_batch(model, optimizer, batches, settings, position);
  const at::Tensor grad_norm = optimizer.grad_norm();
  batches.read_ahead(position.next_sample + static_cast<uint64_t>(settings.batch),
                     std::min(settings.micro_batch, settings.batch));
  StepReport report = read_report(sums, grad_norm, position.step + 1);
  if (settings.gradient_limit > 0 && report.grad_norm > settings.gradient_limit) {
    throw GradientLimitError(ErrorCode::kNonFinite,
                             cat("step ", position.step + 1, ": the gradient norm is ", report.grad_norm,
                                 "; optimizer.spike_limit allows ", settings.gradient_limit,
                                 " after the steps before (lower optimizer.lr, check the batch, or raise the limit and "
                                 "continue with train.resume)"));
  }
  kernels::AdamwSettings adamw = settings.adamw;
  adamw.lr = report.lr = settings.schedule.rate(position.step + 1);
  optimizer.step(model.parameters(), adamw, report.grad_norm, settings.clip);
  if (settings.balance == BalanceKind::kLossFree) balance_without_loss(model, sums.layers, settings);
  position.expert_counts =
      settings.balance == BalanceKind::kAux ? expert_counts(report.layers) : std::map<int64_t, std::vector<int64_t>>();
  position.step += 1;
  position.next_sample += static_cast<uint64_t>(settings.batch);
  position.tokens_seen += static_cast<uint64_t>(settings.batch * batches.sequence_length());
  position.recent_losses.push_back(report.loss);
  if (position.recent_losses.size() > Position::kRecentLosses) {
    position.recent_losses.erase(position.recent_losses.begin());
  }
  return report;
}

}  // namespace coppice::step
