#include "coppice/score/score.h"

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/nn/decoder.h"
#include "coppice/score/calibration.h"
#include "coppice/score/collect.h"
#include "coppice/score/expert_sums.h"
#include "coppice/upcycle/optimizer_state.h"

namespace coppice::score {
namespace {

void check(const families::Model& model, const ScoreSettings& settings) {
  const auto refuse = [](const std::string& message) { throw Error(ErrorCode::kUsage, message); };
  if (!model.config.is_moe()) {
    throw Error(ErrorCode::kUnsupported, cat(model.checkpoint.directory(), ": a ", model.config.family->model_type,
                                             " model has no experts to score; wanted a MoE model"));
  }
  if (settings.batches < 1) refuse("batches: 0; wanted 1 or more");
  if (settings.sequence_length < 1 || settings.sequence_length > model.config.max_positions) {
    refuse(
        cat("sequence-length: ", settings.sequence_length, "; wanted 1 to the model's ", model.config.max_positions));
  }
  const auto length = static_cast<uint64_t>(settings.sequence_length);
  if (settings.batch_tokens == 0 || settings.batch_tokens % length != 0) {
    refuse(cat("batch-tokens: ", settings.batch_tokens, "; wanted a multiple of the sequence length, ", length));
  }
}

std::vector<double> second_moments(const nn::Parameter& parameter, const upcycle::OptimizerState& state) {
  std::vector<double> out(static_cast<size_t>(parameter.master.size(0)), 0.0);
  for (const auto& slice : parameter.slices) {
    const auto entry = state.at(slice.slot.name, "exp_avg_sq");
    std::vector<float> values(static_cast<size_t>(entry.info->elements()));
    io::to_f32(entry.info->dtype, entry.data(), values);
    const bool stacked = slice.slot.expert < 0;
    const size_t size = stacked ? values.size() / out.size() : values.size();
    for (size_t i = 0; i * size < values.size(); ++i) {
      const auto part = std::span<const float>(values).subspan(i * size, size);
      out[stacked ? i : static_cast<size_t>(slice.slot.expert)] += dot(part, part);
    }
  }
  return out;
}

std::string digest_of(const std::vector<data::TokenFile>& tokens) {
  if (tokens.size() == 1) return tokens.front().digest();
  Sha256 sha;
  for (const auto& file : tokens) sha.add(file.digest());
  return sha.hex();
}

}  // namespace

upcycle::Scores score_model(const families::Model& model, const std::vector<data::TokenFile>& tokens,
                            const ScoreSettings& settings) {
  check(model, settings);
  const data::Sampler sampler(tokens, {}, settings.sequence_length, settings.seed);
  const auto state = upcycle::OptimizerState::open(model);
  auto decoder = nn::Decoder::load(model, settings.f32 ? nn::ComputeDtype::kF32 : nn::ComputeDtype::kBf16);
  Calibration calibration(decoder, sampler, static_cast<int64_t>(settings.batch_tokens) / settings.sequence_length);
  Progress progress("score", settings.batches * settings.batch_tokens, ProgressUnit::kTokens);
  for (uint64_t batch = 0; batch < settings.batches; ++batch) {
    check_interrupt();
    calibration.run_batch(batch);
    progress.advance(settings.batch_tokens);
  }
  upcycle::Scores scores;
  scores.model_digest = model.digest();
  scores.model_type = model.config.family->model_type;
  scores.layers = model.config.num_layers;
  scores.experts = model.config.num_experts;
  scores.tokens_digest = digest_of(tokens);
  scores.tokens_seen = settings.batches * settings.batch_tokens;
  scores.batch_tokens = settings.batch_tokens;
  scores.batches = settings.batches;
  SecondMoments moments;
  if (state) moments = [&state](const nn::Parameter& parameter) { return second_moments(parameter, *state); };
  collect(calibration, scores, moments);
  return scores;
}

}  // namespace coppice::score
