#include "coppice/train/growth_scores.h"

#include "coppice/base/progress.h"
#include "coppice/score/calibration.h"
#include "coppice/score/collect.h"
#include "coppice/score/expert_sums.h"

namespace coppice::train {

upcycle::Scores score_in_training(nn::Decoder& model, const Optimizer& optimizer, const data::Sampler& sampler,
                                  uint64_t first, uint64_t count, int64_t windows) {
  const auto batch_tokens = static_cast<uint64_t>(windows * sampler.sequence_length());
  Progress progress("score", count * batch_tokens, ProgressUnit::kTokens);
  score::Calibration calibration(model, sampler, windows);
  for (uint64_t batch = first; batch < first + count; ++batch) {
    calibration.run_batch(batch);
    progress.advance(batch_tokens);
  }
  for (nn::Parameter& p : model.parameters()) p.value.set_requires_grad(true);

  upcycle::Scores scores;
  scores.model_type = model.config().family->model_type;
  scores.layers = model.config().num_layers;
  scores.experts = model.config().num_experts;
  scores.batch_tokens = batch_tokens;
  scores.batches = count;
  scores.tokens_seen = count * batch_tokens;
  score::collect(calibration, scores, [&](const nn::Parameter& parameter) {
    const auto index = static_cast<size_t>(&parameter - model.parameters().data());
    const at::Tensor moment = optimizer.states()[index].exp_avg_sq.to(at::kFloat);
    return score::expert_dot(moment, moment);
  });
  return scores;
}

}  // namespace coppice::train
