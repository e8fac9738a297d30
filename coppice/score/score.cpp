#include "coppice/score/score.h"

#include <algorithm>
#include <functional>
#include <memory>

#include "coppice/base/error.h"
#include "coppice/base/lane_sum.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"
#include "coppice/models/optimizer_state.h"
#include "coppice/nn/device_memory.h"
#include "coppice/nn/host.h"
#include "coppice/score/layered_pass.h"
#include "coppice/score/partial_scores.h"

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
    refuse(cat("sequence-length: ", settings.sequence_length, "; wanted 1 to the model's length, ",
               model.config.max_positions));
  }
  if (settings.batch_tokens > 0 && settings.batches > families::kMaxCount / settings.batch_tokens) {
    refuse(cat("batches: ", settings.batches, " of ", settings.batch_tokens, " tokens; wanted at most ",
               families::kMaxCount, " tokens in all"));
  }
  const auto length = static_cast<uint64_t>(settings.sequence_length);
  if (settings.batch_tokens == 0 || settings.batch_tokens % length != 0) {
    refuse(cat("batch-tokens: ", settings.batch_tokens, "; wanted a multiple of the sequence length, ", length));
  }
}

at::Tensor second_moments(const nn::Parameter& parameter, const models::OptimizerState& state, int64_t num_experts) {
  std::vector<double> out(parameter.experts.size(), 0.0);
  for (const auto& slice : parameter.slices) {
    const auto entry = state.at(slice.slot.name, "exp_avg_sq");
    std::vector<float> values(static_cast<size_t>(entry.info->elements()));
    io::to_f32(entry.info->dtype, entry.data(), values);
    auto slot = slice.slot;
    for (size_t i = 0; i < out.size(); ++i) {
      if (!slice.slot.rule->layout.stacked && slice.slot.expert != parameter.experts[i]) continue;
      slot.expert = parameter.experts[i];
      const std::span<const float> all = values;
      const auto part = slot.rule->layout.stacked ? nn::part_of(slot, all, num_experts) : all;
      out[i] += dot(part, part);
    }
  }
  return nn::from_host<double>(out, {static_cast<int64_t>(out.size())}, at::kCPU);
}

std::string digest_of(const std::vector<data::TokenFile>& tokens) {
  if (tokens.size() == 1) return tokens.front().digest();
  Sha256 sha;
  for (const auto& file : tokens) sha.add(file.digest());
  return sha.hex();
}

plan::Scores begin_scores(const families::Model& model, const std::vector<data::TokenFile>& tokens,
                          const ScoreSettings& settings, bool has_moments) {
  plan::Scores scores;
  scores.model_digest = model.digest();
  scores.model_type = model.config.family->model_type;
  scores.layers = model.config.num_layers;
  scores.experts = model.config.num_experts;
  scores.tokens_digest = digest_of(tokens);
  scores.tokens_seen = settings.batches * settings.batch_tokens;
  scores.batch_tokens = settings.batch_tokens;
  scores.batches = settings.batches;
  scores.reset_attention = settings.reset_attention;
  scores.second_moment = has_moments ? "trainer" : "batches";
  return scores;
}

// How memory is divided: half for the layers in memory at a time, the rest for activations.
struct Memory {
  uint64_t segment = 0, activations = 0;
};

Memory share_out(const nn::LayeredDecoder& decoder, int64_t layers, const ScoreSettings& settings) {
  double limit = -static_cast<double>(settings.max_memory_bytes > 0 ? settings.max_memory_bytes
                                                                    : nn::memory_of(settings.device).total / 2);
  decoder.division().max_over_ranks({&limit, 1});
  const auto all = static_cast<uint64_t>(-limit);
  Memory out{.segment = all / 2};
  const auto segments = nn::plan_segments(decoder, layers, out.segment, nn::Purpose::kGradients);
  uint64_t largest = 0;
  for (const Segment& s : segments) {
    largest = std::max(largest, nn::segment_bytes(decoder, s, nn::Purpose::kGradients));
  }
  out.activations = all - std::min(all, largest);
  return out;
}

// Keeps the planes of an earlier run that are needed, if all ranks have them.
void keep(Planes& planes, const std::function<bool(int64_t)>& is_needed, int64_t layers, const nn::Division& division) {
  std::vector<double> missing(static_cast<size_t>(layers + 1), 1);
  for (const int64_t layer : planes.layers()) {
    if (is_needed(layer)) missing.at(static_cast<size_t>(layer)) = 0;
  }
  division.max_over_ranks(missing);
  for (const int64_t layer : planes.layers()) {
    if (missing.at(static_cast<size_t>(layer)) > 0) planes.remove(layer);
  }
}

}  // namespace

plan::Scores score_model(const families::Model& model, const std::vector<data::TokenFile>& tokens,
                         const ScoreSettings& settings) {
  check(model, settings);
  const data::Sampler sampler(tokens, {}, settings.sequence_length, settings.seed);
  const auto state = models::OptimizerState::open(model);
  SecondMoments moments;
  if (state)
    moments = [&](const nn::Parameter& parameter) {
      return second_moments(parameter, *state, model.config.num_experts);
    };
  const nn::LayeredDecoder decoder(model, settings.dtype, settings.device, nn::divide(settings.world, model.config));
  plan::Scores scores = begin_scores(model, tokens, settings, state.has_value());

  std::unique_ptr<PartialScores> partial;
  if (!settings.out.empty()) partial = std::make_unique<PartialScores>(model, scores, settings);
  const int64_t left = partial ? partial->layers_left() : scores.layers;
  if (partial && partial->scores()) scores = *partial->scores();

  const Batches batches{sampler,
                        0,
                        settings.batches,
                        static_cast<int64_t>(settings.batch_tokens) / settings.sequence_length,
                        settings.reset_attention,
                        &decoder.division()};
  const Planes::Shape shape{batches.rows(), model.config.model_dim,
                            decoder.dtype() == nn::ComputeDtype::kF32 ? at::kFloat : at::kBFloat16, settings.device};
  const Memory memory = share_out(decoder, left, settings);
  const auto directory = partial ? partial->directory() : std::filesystem::path();
  Planes activations("activations", directory, memory.activations, shape);
  Planes gradients("gradient", directory, 0, shape);  // always on disk, to resume from
  keep(activations, [&](int64_t layer) { return layer < left; }, model.config.num_layers, decoder.division());
  keep(gradients, [&](int64_t layer) { return layer == left; }, model.config.num_layers, decoder.division());
  if (left < model.config.num_layers && !gradients.has(left)) {
    throw Error(ErrorCode::kFormat, cat(directory, ": a gradient of layer ", left,
                                        " is missing, here or on another rank (start again without --resume)"));
  }

  LayeredPass pass(decoder, batches, activations, gradients);
  pass.run(left, memory.segment, state.has_value(), [&](const Segment& segment, const auto& sums) {
    for (const auto& [layer, layer_sums] : sums) layer_sums.add_to(scores, layer, moments);
    if (partial && gradients.has(segment.first)) partial->save(scores, segment.first);
  });
  if (partial) partial->discard();
  return scores;
}

}  // namespace coppice::score
