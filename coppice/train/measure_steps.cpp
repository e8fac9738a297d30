#include "coppice/train/measure_steps.h"

#include <algorithm>
#include <map>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/families/match.h"
#include "coppice/nn/device.h"
#include "coppice/nn/device_memory.h"
#include "coppice/train/run.h"

namespace coppice::train {
namespace {

constexpr int64_t kUncounted = 2;
constexpr int kRounds = 4;  // so that other work on the machine does not slow down only one number of experts
constexpr double kBytesPerParameter = 18;  // bf16 weights, f32 gradients, masters and two moments

// The number of leading dense layers; the trainer supports no other pattern.
int64_t leading_dense_layers(const families::ModelConfig& config) {
  const auto first = std::ranges::find(config.moe_layer, true);
  if (std::find(first, config.moe_layer.end(), false) != config.moe_layer.end()) {
    throw Error(ErrorCode::kUnsupported,
                "measure: dense layers lie between MoE layers, which random models do not support (give "
                "--step-time-before and --step-time-after)");
  }
  return first - config.moe_layer.begin();
}

TrainOptions options_of(const families::ModelConfig& config, const MeasureSettings& settings) {
  TrainOptions out;
  out.model_family = config.family->model_type;
  out.vocab_size = config.vocab_size;
  out.model_dim = config.model_dim;
  out.num_layers = config.num_layers;
  out.num_heads = config.num_heads;
  out.num_kv_heads = config.num_kv_heads;
  out.head_dim = config.head_dim;
  out.top_k = config.top_k;
  out.expert_width = config.expert_width;
  out.dense_width = config.dense_width;
  out.shared_width = config.shared_width;
  out.first_dense_layers = leading_dense_layers(config);
  out.random_tokens = true;
  out.batch_tokens = settings.batch_tokens;
  out.sequence_length = settings.sequence_length;
  out.micro_batch = std::min<int64_t>(8, out.batch_tokens / out.sequence_length);
  out.steps = settings.steps + kUncounted;
  out.dtype = settings.dtype;
  out.device = settings.device;
  out.threads = static_cast<int64_t>(settings.threads);
  out.schedule = "constant";
  out.warmup = 0;
  return out;
}

void check_memory(const families::ModelConfig& config, int64_t experts, at::Device device) {
  auto largest = families::count_parameters(config);
  largest.total += largest.experts / config.num_experts * (experts - config.num_experts);
  const double wanted = kBytesPerParameter * static_cast<double>(largest.total);
  const uint64_t free = nn::memory_of(device).free;
  if (wanted > static_cast<double>(free)) {
    throw Error(ErrorCode::kIo, cat("measure: training with ", experts, " experts takes about ",
                                    bytes_text(static_cast<uint64_t>(wanted)), " and ", bytes_text(free),
                                    " are free (time fewer with --measure-experts; the rest is predicted)"));
  }
}

}  // namespace

std::vector<std::pair<int64_t, double>> measure_steps(const families::ModelConfig& config,
                                                      const MeasureSettings& settings) {
  if (config.family->surgery_only) {
    throw Error(ErrorCode::kUnsupported, cat("measure: coppice does not train ", config.family->model_type,
                                             " (give --step-time-before and --step-time-after)"));
  }
  const std::set<int64_t>& counts = settings.experts;
  if (counts.size() < 2) throw Error(ErrorCode::kUsage, "measure-experts: wanted at least two different numbers");
  if (*counts.begin() < config.top_k) {
    throw Error(ErrorCode::kUsage,
                cat("measure-experts: ", *counts.begin(), " experts; wanted at least top-K, which is ", config.top_k));
  }
  check_memory(config, *counts.rbegin(), nn::compute_device(settings.device));
  TrainOptions run = options_of(config, settings);
  std::map<int64_t, double> fastest;
  for (int round = 0; round < kRounds; ++round) {
    for (const int64_t experts : counts) {
      run.num_experts = experts;
      const double seconds = train(run).seconds_per_step;
      log_info(cat("measured ", duration_text(seconds), " per step with ", experts, " experts"));
      const auto [place, is_first] = fastest.emplace(experts, seconds);
      place->second = std::min(place->second, seconds);
    }
  }
  return {fastest.begin(), fastest.end()};
}

}  // namespace coppice::train
