#include "coppice/train/growth_scores.h"

#include <vector>

#include "coppice/base/check.h"
#include "coppice/base/progress.h"
#include "coppice/kernels/sums.h"
#include "coppice/score/batches.h"
#include "coppice/score/layer_sums.h"
#include "coppice/step/divided_state.h"

namespace coppice::train {
namespace {

// A divided tensor of a parameter (master or moment), brought together: all elements of this rank's experts.
at::Tensor of_own_experts(const nn::Decoder& model, const step::Optimizer& optimizer, size_t i,
                          const at::Tensor& tensor) {
  if (!optimizer.divided()) return tensor;
  const step::ShardLayout& layout = optimizer.divided()->layout();
  std::vector<std::vector<step::Interval>> wanted;
  for (int64_t rank = 0; rank < layout.ranks(); ++rank) {
    wanted.push_back(layout.elements_of(i, layout.experts_of(i, rank)));
  }
  return step::gather_shards(model.division().world->all(), layout.shards(i), tensor, wanted)
      .view(model.parameters()[i].value.sizes());
}

// The parameters, of which those that are scored have all masters of this rank's experts.
std::vector<nn::Parameter> with_masters(const nn::Decoder& model, const step::Optimizer& optimizer) {
  const at::NoGradGuard no_grad;
  std::vector<nn::Parameter> out = model.parameters();
  for (size_t i = 0; i < out.size(); ++i) {
    if (score::is_scored(out[i])) out[i].master = of_own_experts(model, optimizer, i, out[i].master.detach());
  }
  return out;
}

// Forward and backward passes over all batches; only scored parameters get gradients.
score::SumsByLayer sum_over(nn::Decoder& model, const std::vector<nn::Parameter>& parameters,
                            const score::Batches& batches) {
  for (nn::Parameter& p : model.parameters()) p.value.set_requires_grad(score::is_scored(p));
  const auto& config = model.config();
  auto sums = score::begin_sums(config, parameters, 0, config.num_layers, true, &model.division());
  Progress progress("score", static_cast<uint64_t>(batches.rows()), ProgressUnit::kTokens);
  score::FiniteLosses losses;
  for (const score::Pass& pass : batches.passes()) {
    const auto [tokens_BS, target_BS, start_BS] = batches.read(pass);
    const nn::LossOutput out =
        model.loss(tokens_BS, target_BS, {.with_output_sq = true, .document_start_BS = start_BS});
    batches.backward(pass, out.loss, losses);
    score::end_pass(sums, out.routing, pass.ends_batch, pass.counts);
    progress.advance(static_cast<uint64_t>(tokens_BS.numel()));
  }
  losses.finish();
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
  const auto sums = sum_over(model, with_masters(model, optimizer),
                             {sampler, first, count, windows, batches.reset_attention, &model.division()});
  const auto moments = [&](const nn::Parameter& part) {
    const auto index = &find_parameter(model.parameters(), part.role, part.layer) - model.parameters().data();
    const auto i = static_cast<size_t>(index);
    const at::Tensor moment = of_own_experts(model, optimizer, i, optimizer.states()[i].exp_avg_sq).to(at::kFloat);
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
