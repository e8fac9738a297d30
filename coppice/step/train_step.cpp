#include "coppice/step/train_step.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/nn/host.h"

// B sequences of a micro-batch, S positions, E experts.

namespace coppice::step {
namespace {

struct MicroBatch {
  at::Tensor tokens_BS, target_BS;
  at::Tensor start_BS;  // start positions of documents; undefined without reset_attention
};

MicroBatch read_batch(const data::Sampler& sampler, uint64_t first_sample, int64_t count, bool with_starts) {
  const int64_t length = sampler.sequence_length();
  MicroBatch out{at::empty({count, length}, at::kLong), at::empty({count, length}, at::kLong), {}};
  if (with_starts) out.start_BS = at::empty({count, length}, at::kLong);
  for (int64_t b = 0; b < count; ++b) {
    const uint64_t sample = first_sample + static_cast<uint64_t>(b);
    const auto tokens = nn::token_row(out.tokens_BS, b), target = nn::token_row(out.target_BS, b);
    sampler.read(sample, tokens, target);
    if (with_starts) sampler.document_starts(sample, nn::token_row(out.start_BS, b));
  }
  return out;
}

void require_finite(std::string_view what, double value, int64_t step) {
  if (std::isfinite(value)) return;
  throw Error(ErrorCode::kNonFinite, cat("step ", step, ": the ", what, " is ", value,
                                         "; training has diverged (lower optimizer.lr, lengthen schedule.warmup, "
                                         "or continue from the last good checkpoint with train.resume)"));
}

void add_counts(at::Tensor& sum, const at::Tensor& counts) { sum = sum.defined() ? sum + counts : counts; }

void add_load(StepReport& report, const nn::LayerRouting& routing) {
  LayerLoad& layer = report.layers[routing.layer];
  add_counts(layer.count_E, routing.count_E);
  add_counts(layer.balance_count, routing.balance_count);
  if (routing.balance_score.defined()) add_counts(layer.balance_score, routing.balance_score.to(at::kDouble));
  if (!routing.index_TK.defined()) return;
  layer.index_TK = layer.index_TK.defined() ? at::cat({layer.index_TK, routing.index_TK}) : routing.index_TK;
}

// Calls `visit` with each micro-batch, the options of its forward pass in `forward`, and its number of sequences.
template <class Visit>
void for_each_micro_batch(const data::Sampler& sampler, const StepSettings& settings, const Position& position,
                          nn::ForwardOptions& forward, const Visit& visit) {
  for (int64_t begin = 0; begin < settings.batch; begin += settings.micro_batch) {
    const int64_t size = std::min(settings.micro_batch, settings.batch - begin);
    const uint64_t sample = position.next_sample + static_cast<uint64_t>(begin);
    const MicroBatch batch = read_batch(sampler, sample, size, settings.reset_attention);
    forward.document_start_BS = batch.start_BS;
    forward.first_token = sample * static_cast<uint64_t>(sampler.sequence_length());
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
  for (const auto& [layer, load] : layers) {
    const auto* const count = load.count_E.const_data_ptr<int64_t>();
    out[layer].assign(count, count + load.count_E.numel());
  }
  return out;
}

// The number of times each expert is chosen in this batch, counted by a forward pass.
std::map<int64_t, std::vector<int64_t>> count_batch(const nn::Decoder& model, const data::Sampler& sampler,
                                                    const StepSettings& settings, const Position& position) {
  StepReport counted;
  nn::ForwardOptions forward;
  forward.lineage = settings.lineage;
  for_each_micro_batch(sampler, settings, position, forward, [&](const MicroBatch& batch, int64_t) {
    std::vector<nn::LayerRouting> routing;
    at::Tensor targets_B;
    (void)model.sequence_loss(batch.tokens_BS, batch.target_BS, forward, targets_B, &routing);
    for (const auto& layer : routing) add_load(counted, layer);
  });
  return expert_counts(counted.layers);
}

// The expected loads of the rest of a batch: those of the batch before or, if unknown, those of this batch counted
// beforehand. Per expert, or per lineage under lineage-unique routing; f64.
std::map<int64_t, at::Tensor> expected_counts(const nn::Decoder& model, const data::Sampler& sampler,
                                              const StepSettings& settings, const Position& position) {
  const auto counts = counts_all_experts(position, model.config()) ? position.expert_counts
                                                                   : count_batch(model, sampler, settings, position);
  std::map<int64_t, at::Tensor> out;
  for (const auto& [layer, of_layer] : counts) {
    const auto count_E = at::empty({std::ssize(of_layer)}, at::kLong);
    std::ranges::copy(of_layer, count_E.mutable_data_ptr<int64_t>());
    const auto* const lineage = settings.lineage.get();
    const auto count = lineage ? nn::by_lineage(count_E, lineage->parents.at(layer), lineage->num_lineages) : count_E;
    out[layer] = count.to(at::kDouble);
  }
  return out;
}

// The loads of the earlier micro-batches, plus the expected loads of the micro-batches after this one.
std::map<int64_t, at::Tensor> counts_elsewhere(const std::map<int64_t, at::Tensor>& expected, const StepReport& report,
                                               double share_left) {
  std::map<int64_t, at::Tensor> out;
  for (const auto& [layer, count] : expected) {
    const auto before = report.layers.find(layer);
    out[layer] = count * share_left;
    if (before != report.layers.end()) out[layer] = out[layer] + before->second.balance_count;
  }
  return out;
}

// The auxiliary loss of the whole batch.
double batch_aux_loss(const StepReport& report, int64_t tokens, int64_t top_k, nn::BalanceForm form) {
  std::vector<nn::LayerBalance> balance;
  for (const auto& [layer, load] : report.layers) balance.push_back({load.balance_score, load.balance_count});
  return nn::balancing_loss(balance, tokens, top_k, form).item<double>();
}

// Forward and backward passes over the whole batch. Leaves the gradients in the optimizer's sums and everything else in
// `report`.
void accumulate_batch(nn::Decoder& model, Optimizer& optimizer, const data::Sampler& sampler,
                      const StepSettings& settings, const Position& position, StepReport& report) {
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
    expected = expected_counts(model, sampler, settings, position);
  }
  int64_t left = settings.batch;
  for_each_micro_batch(sampler, settings, position, forward, [&](const MicroBatch& batch, int64_t size) {
    left -= size;
    const double share_left = static_cast<double>(left) / static_cast<double>(settings.batch);
    if (!expected.empty()) forward.balance_count = counts_elsewhere(expected, report, share_left);
    const nn::LossOutput out = model.loss(batch.tokens_BS, batch.target_BS, forward);
    const double token_loss = nn::number(out.token_loss);
    require_finite("loss", token_loss, position.step + 1);
    const double share = static_cast<double>(size) / static_cast<double>(settings.batch);
    (out.loss * share).backward();
    optimizer.accumulate(model.parameters());
    report.loss += share * token_loss;
    if (out.z_loss.defined()) report.z_loss += share * nn::number(out.z_loss);
    for (const auto& layer : out.routing) add_load(report, layer);
    if (!settings.keep_routing) return;
    const at::Tensor token_T = batch.tokens_BS.view({-1});
    report.token_T = report.token_T.defined() ? at::cat({report.token_T, token_T}) : token_T;
  });
  if (with_aux_loss) {
    report.aux_loss =
        batch_aux_loss(report, settings.batch * sampler.sequence_length(), model.config().top_k, settings.balance_form);
  }
}

// Moves the selection biases after a step, by the loads of its batch.
void balance_without_loss(nn::Decoder& model, const StepReport& report, const StepSettings& settings) {
  for (const auto& [layer, load] : report.layers) {
    const at::Tensor& bias_E = model.selection_bias().at(layer);
    std::span<const uint32_t> group_of;
    at::Tensor count = load.balance_count;
    if (settings.waking) {
      group_of = settings.waking->parents.at(layer);
      count = nn::by_lineage(load.count_E, settings.waking->parents.at(layer), settings.waking->num_lineages);
      wake(bias_E, group_of, settings.waking->steps_left);
    } else if (settings.lineage) {
      group_of = settings.lineage->parents.at(layer);
    }
    update_selection_bias(bias_E, count, group_of, settings.balance_rate, settings.recentre);
  }
}

}  // namespace

StepReport train_step(nn::Decoder& model, Optimizer& optimizer, const data::Sampler& sampler,
                      const StepSettings& settings, Position& position) {
  StepReport report;
  optimizer.clear();
  accumulate_batch(model, optimizer, sampler, settings, position, report);
  report.grad_norm = optimizer.grad_norm();
  require_finite("gradient norm", report.grad_norm, position.step + 1);
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
  if (settings.balance == BalanceKind::kLossFree) balance_without_loss(model, report, settings);

  position.expert_counts =
      settings.balance == BalanceKind::kAux ? expert_counts(report.layers) : std::map<int64_t, std::vector<int64_t>>();
  position.step += 1;
  position.next_sample += static_cast<uint64_t>(settings.batch);
  position.tokens_seen += static_cast<uint64_t>(settings.batch * sampler.sequence_length());
  position.recent_losses.push_back(report.loss);
  if (position.recent_losses.size() > Position::kRecentLosses) {
    position.recent_losses.erase(position.recent_losses.begin());
  }
  return report;
}

}  // namespace coppice::step
