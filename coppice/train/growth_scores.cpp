#include "coppice/train/growth_scores.h"

#include <vector>

#include "coppice/base/check.h"
#include "coppice/base/progress.h"
#include "coppice/kernels/sums.h"
#include "coppice/score/batches.h"
#include "coppice/score/layer_sums.h"

namespace coppice::train {
namespace {

// Forward and backward passes over all batches; only scored parameters get gradients.
score::SumsByLayer sum_over(nn::Decoder& model, const score::Batches& batches) {
  for (nn::Parameter& p : model.parameters()) p.value.set_requires_grad(score::is_scored(p));
  const auto& config = model.config();
  auto sums = score::begin_sums(config, model.parameters(), 0, config.num_layers, true);
  Progress progress("score", static_cast<uint64_t>(batches.rows()), ProgressUnit::kTokens);
  for (const score::Pass& pass : batches.passes()) {
    const auto [tokens_BS, target_BS, start_BS] = batches.read(pass);
    const nn::LossOutput out =
        model.loss(tokens_BS, target_BS, {.with_output_sq = true, .document_start_BS = start_BS});
    batches.backward(pass, out.loss);
    score::end_pass(sums, out.routing, pass.ends_batch);
    progress.advance(static_cast<uint64_t>(tokens_BS.numel()));
  }
  for (nn::Parameter& p : model.parameters()) p.value.set_requires_grad(true);
  return sums;
}

}  // namespace

plan::Scores score_in_training(nn::Decoder& model, const step::Optimizer& optimizer, const data::Sampler& sampler,
                               const ScoredBatches& batches) {
  const int64_t windows = batches.windows;
  const uint64_t count = batches.count;
  COPPICE_CHECK(count > 0 && count * static_cast<uint64_t>(windows) <= batches.before, count, " batches of ", windows,
                " windows before window ", batches.before);
  const uint64_t first = batches.before - count * static_cast<uint64_t>(windows);
  const auto sums = sum_over(model, {sampler, first, count, windows, batches.reset_attention});
  const auto moments = [&](const nn::Parameter& part) {
    const auto index = &find_parameter(model.parameters(), part.role, part.layer) - model.parameters().data();
    const at::Tensor moment = optimizer.states()[static_cast<size_t>(index)].exp_avg_sq.to(at::kFloat);
    return kernels::expert_dot(moment, moment);
  };
  plan::Scores scores;
  scores.model_type = model.config().family->model_type;
  scores.layers = model.config().num_layers;
  scores.experts = model.config().num_experts;
  scores.batch_tokens = static_cast<uint64_t>(windows * sampler.sequence_length());
  scores.batches = count;
  scores.tokens_seen = count * scores.batch_tokens;
  scores.reset_attention = batches.reset_attention;
  scores.second_moment = "trainer";
  for (const auto& [layer, of_layer] : sums) of_layer.add_to(scores, layer, moments);
  return scores;
}

}  // namespace coppice::train
