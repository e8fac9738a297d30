#include "coppice/step/train_step.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <span>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/nn/host.h"
#include "coppice/step/over_ranks.h"

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

// The windows of this rank in the pass that starts at window `begin` of the batch.
PassWindows own_windows(const nn::Decoder& model, const StepSettings& settings, int64_t begin) {
  const dist::World* const world = ranks_of(model);
  return pass_windows(begin, settings.batch, settings.micro_batch, world ? world->rank() : 0,
                      world ? world->size() : 1);
}

// Calls `visit` with each micro-batch of this rank, the options of its forward pass in `forward`, and its windows.
template <class Visit>
void for_each_micro_batch(const nn::Decoder& model, BatchReader& batches, const StepSettings& settings,
                          const Position& position, nn::ForwardOptions& forward, const Visit& visit) {
  for (int64_t left = settings.batch; left > 0;) {
    const PassWindows windows = own_windows(model, settings, settings.batch - left);
    left = windows.left;
    const uint64_t sample = position.next_sample + static_cast<uint64_t>(windows.first);
    const MicroBatch batch = batches.take(sample, windows.count);
    forward.document_start_BS = batch.start_BS;
    forward.first_token = sample * static_cast<uint64_t>(batches.sequence_length());
    visit(batch, windows);
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
  for_each_micro_batch(model, batches, settings, position, forward, [&](const MicroBatch& batch, const PassWindows&) {
    std::vector<nn::LayerRouting> routing;
    at::Tensor targets_B;
    (void)model.sequence_loss(batch.tokens_BS, batch.target_BS, forward, targets_B, &routing);
    for (const auto& layer : routing) add_load(counted, layer);
  });
  std::map<int64_t, at::Tensor> out;
  for (const auto& [layer, sums] : counted) out[layer] = sums.count_E;
  return sums_over_ranks(ranks_of(model), out);
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

// The loads of the earlier micro-batches on all ranks, plus the expected loads of the micro-batches after this one.
std::map<int64_t, at::Tensor> counts_elsewhere(dist::World* world, const std::map<int64_t, at::Tensor>& expected,
                                               const SumsByLayer& layers, double share_left) {
  std::map<int64_t, at::Tensor> own;
  for (const auto& [layer, sums] : layers) own[layer] = sums.balance_count;
  const auto before = sums_over_ranks(world, own);
  std::map<int64_t, at::Tensor> out;
  for (const auto& [layer, count] : expected) {
    const auto found = before.find(layer);
    out[layer] = count * share_left;
    if (found != before.end()) out[layer] = out[layer] + found->second;
  }
  return out;
}

// Forward and backward passes over the whole batch, which the device may still be busy with afterwards. Leaves the
// gradients in the optimizer's sums, on several ranks under way.
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
  if (with_aux_loss && own_windows(model, settings, 0).left > 0) {
    expected = expected_counts(model, batches, settings, position);
  }
  BatchSums sums;
  forward.before_layer = [&](int64_t layer) { optimizer.wait_for_values(layer); };
  for_each_micro_batch(
      model, batches, settings, position, forward, [&](const MicroBatch& batch, const PassWindows& of) {
        const auto part_of_batch = [&](int64_t windows) {
          return static_cast<double>(windows) / static_cast<double>(settings.batch);
        };
        if (!expected.empty()) {
          forward.balance_count = counts_elsewhere(ranks_of(model), expected, sums.layers, part_of_batch(of.left));
        }
        const nn::LossOutput out = model.loss(batch.tokens_BS, batch.target_BS, forward);
        const double share = part_of_batch(of.count);
        if (of.left == 0) optimizer.begin_last_pass();
        (out.loss * share).backward();
        optimizer.accumulate(model.parameters());
        sums.share.push_back(share);
        sums.token_loss.push_back(out.token_loss.to(at::kDouble));
        if (out.z_loss.defined()) sums.z_loss.push_back(out.z_loss.to(at::kDouble));
        for (const auto& layer : out.routing) add_load(sums.layers, layer);
        if (settings.keep_routing) sums.token_T.push_back(batch.tokens_BS.view({-1}));
      });
  return sums;
}

// What the host learns of the routing of one MoE layer, summed over the batch: tensors of the host.
struct LayerOnHost {
  at::Tensor count_E, balance_count;  // int64
  at::Tensor balance_score;           // f64; undefined without the auxiliary loss
};

// Adds what the other ranks know: losses and counts, in one reduction. Counts stay exact below 2^53.
void add_other_ranks(const nn::Division& division, std::span<double> numbers, std::map<int64_t, LayerOnHost>& layers) {
  if (division.num_ranks() == 1) return;
  std::vector<double> all(numbers.begin(), numbers.end());
  const auto for_each_tensor = [&](const auto& visit) {
    for (auto& [layer, of_layer] : layers) {
      for (at::Tensor* const tensor : {&of_layer.count_E, &of_layer.balance_count, &of_layer.balance_score}) {
        if (tensor->defined()) visit(*tensor);
      }
    }
  };
  for_each_tensor([&](const at::Tensor& tensor) {
    const auto values = nn::to_host<double>(tensor.to(at::kDouble));
    all.insert(all.end(), values.begin(), values.end());
  });
  division.sum_over_ranks(all);
  auto next = std::span<const double>(all);
  const auto take = [&](size_t count) {
    const auto taken = next.first(count);
    next = next.subspan(count);
    return taken;
  };
  std::ranges::copy(take(numbers.size()), numbers.begin());
  for_each_tensor([&](at::Tensor& tensor) {
    tensor = nn::from_host<double>(take(static_cast<size_t>(tensor.numel())), tensor.sizes(), at::kCPU)
                 .to(tensor.scalar_type());
  });
}

// The auxiliary loss of the whole batch.
double batch_aux_loss(const std::map<int64_t, LayerOnHost>& layers, int64_t tokens, int64_t top_k,
                      nn::BalanceForm form) {
  std::vector<nn::LayerBalance> balance;
  for (const auto& [layer, of_layer] : layers) balance.push_back({of_layer.balance_score, of_layer.balance_count});
  return nn::number(nn::balancing_loss(balance, tokens, top_k, form));
}

// Brings what the device knows of the step to the host, in one transfer, and adds what other ranks know, in one
// reduction. `sums` then has the counts of all ranks.
//
// Throws   Error{kNonFinite} if a loss or the gradient norm is not finite.
StepReport read_report(const nn::Decoder& model, BatchSums& sums, const at::Tensor& sum_of_squares, int64_t tokens,
                       const StepSettings& settings, int64_t step) {
  std::vector<at::Tensor> there{at::stack(sums.token_loss), sum_of_squares};
  if (!sums.z_loss.empty()) there.push_back(at::stack(sums.z_loss));
  for (const auto& [layer, of_layer] : sums.layers) {
    there.push_back(of_layer.count_E);
    there.push_back(of_layer.balance_count);
    if (of_layer.balance_score.defined()) there.push_back(of_layer.balance_score);
    if (!of_layer.index_TK.empty()) there.push_back(at::cat(of_layer.index_TK));
  }
  const auto here = nn::on_host_together(there);

  auto next = here.begin();
  const auto by_share = [&](std::span<const double> values) {
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) sum += sums.share[i] * values[i];
    return sum;
  };
  enum { kLoss, kSquares, kZ, kStopped, kCount };
  std::array<double, kCount> numbers{};
  numbers[kLoss] = by_share(nn::host_values<double>(*next++));
  numbers[kSquares] = nn::number(*next++);
  if (!sums.z_loss.empty()) numbers[kZ] = by_share(nn::host_values<double>(*next++));
  numbers[kStopped] = interrupt_signal() != 0 ? 1 : 0;
  StepReport report;
  std::map<int64_t, LayerOnHost> layers;
  for (const auto& [layer, of_layer] : sums.layers) {
    LayerOnHost& on_host = layers[layer];
    on_host.count_E = *next++;
    on_host.balance_count = *next++;
    if (of_layer.balance_score.defined()) on_host.balance_score = *next++;
    if (!of_layer.index_TK.empty()) report.layers[layer].index_TK = *next++;
  }
  dist::World* const world = ranks_of(model);
  add_other_ranks(model.division(), numbers, layers);
  report.loss = numbers[kLoss];
  require_finite("loss", report.loss, step);
  report.grad_norm = std::sqrt(numbers[kSquares]);
  require_finite("gradient norm", report.grad_norm, step);
  report.z_loss = numbers[kZ];
  report.is_stopped = numbers[kStopped] > 0;
  for (auto& [layer, on_host] : layers) {
    report.layers[layer].count_E = on_host.count_E;
    if (!world) continue;
    sums.layers[layer].count_E = nn::to_device(on_host.count_E, model.device());
    sums.layers[layer].balance_count = nn::to_device(on_host.balance_count, model.device());
  }
  if (settings.balance == BalanceKind::kAux && settings.aux_coef != 0) {
    report.aux_loss = batch_aux_loss(layers, tokens, model.config().top_k, settings.balance_form);
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
  BatchSums sums = accumulate_batch(model, optimizer, batches, settings, position);
  const PassWindows next = own_windows(model, settings, 0);
  batches.read_ahead(position.next_sample + static_cast<uint64_t>(settings.batch + next.first), next.count);
  optimizer.finish_gradients();
  StepReport report = read_report(model, sums, optimizer.sum_of_squares(), settings.batch * batches.sequence_length(),
                                  settings, position.step + 1);
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
