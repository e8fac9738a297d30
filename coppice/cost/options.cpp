#include "coppice/cost/options.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::cost {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorCode::kUsage, message); }

constexpr int64_t kMostGpus = 1'000'000;
constexpr int64_t kMeasuredTokens = 2048, kMeasuredSequence = 256;
constexpr std::array<std::string_view, 6> kOfMeasuring = {"measure-experts", "measure-tokens", "measure-steps",
                                                          "measure-dtype",   "measure-device", "threads"};
constexpr std::array<std::string_view, 4> kOfCluster = {"gpus", "gpu-tokens", "micro-batch", "once-per-rank"};
constexpr std::array<std::string_view, 2> kOfDense = {"top-k", "granularity"};
constexpr std::array<std::string_view, 25> kOfExperts = {"loss-gap",
                                                         "target-closure",
                                                         "step-time-before",
                                                         "step-time-after",
                                                         "batch-tokens",
                                                         "sequence-length",
                                                         "device",
                                                         "device-flops",
                                                         "device-memory-rate",
                                                         "device-network-rate",
                                                         "cluster",
                                                         "gpus",
                                                         "gpu-tokens",
                                                         "micro-batch",
                                                         "once-per-rank",
                                                         "expert-parallel-after",
                                                         "utilisation",
                                                         "measure",
                                                         "measure-experts",
                                                         "measure-tokens",
                                                         "measure-steps",
                                                         "measure-dtype",
                                                         "measure-device",
                                                         "threads",
                                                         "fit"};

void check_positive(std::string_view name, const std::optional<double>& value, double most = 1e30) {
  if (value && (!(*value > 0) || !(*value <= most))) {
    refuse(cat(name, ": ", number_text(*value), "; wanted a number above 0",
               most < 1e30 ? cat(" and at most ", number_text(most)) : std::string()));
  }
}

void check_measuring(const CostOptions& o) {
  if (o.measure && (o.step_time_before || o.step_time_after)) {
    refuse("measure: has no effect, because the step times are given (leave out one of the two)");
  }
  if (!o.measure) refuse_given(o, kOfMeasuring, "it requires --measure");
  for (const int64_t experts : o.measure_experts) {
    if (experts < 1) refuse(cat("measure-experts: ", experts, "; wanted 1 or more"));
  }
  if (o.measure_tokens && *o.measure_tokens < 1)
    refuse(cat("measure-tokens: ", *o.measure_tokens, "; wanted 1 or more"));
  if (o.measure_steps && *o.measure_steps < 1) refuse(cat("measure-steps: ", *o.measure_steps, "; wanted 1 or more"));
}

void check_simulating(const CostOptions& o) {
  if (!o.cluster) refuse_given(o, kOfCluster, "it requires --cluster");
  if (o.cluster) {
    const std::array<std::string_view, 1> rate = {"device-network-rate"};
    refuse_given(o, rate, "--cluster has the rates of its links");
  }
  if (!o.gpus.empty()) {
    const std::array<std::string_view, 1> ranks = {"data-parallel"};
    refuse_given(o, ranks, "--gpus gives the number of ranks");
  }
  for (const int64_t gpus : o.gpus) {
    if (gpus < 1 || gpus > kMostGpus) refuse(cat("gpus: ", gpus, "; wanted 1 to ", kMostGpus));
  }
  if (o.gpu_tokens) {
    const std::array<std::string_view, 1> batch = {"batch-tokens"};
    refuse_given(o, batch, "--gpu-tokens gives the tokens of a step");
  }
  constexpr int64_t kMostTokens = 1'000'000'000;
  if (o.gpu_tokens && (*o.gpu_tokens < 1 || *o.gpu_tokens > kMostTokens))
    refuse(cat("gpu-tokens: ", *o.gpu_tokens, "; wanted 1 to ", kMostTokens));
  if (o.micro_batch && *o.micro_batch < 1) refuse(cat("micro-batch: ", *o.micro_batch, "; wanted 1 or more"));
}

}  // namespace

void refuse_given(const CostOptions& options, std::span<const std::string_view> names, std::string_view reason) {
  CostOptions given = options, fallback;
  const auto specs = option_specs(given), defaults = option_specs(fallback);
  for (size_t i = 0; i < specs.size(); ++i) {
    const bool is_given = options.given.has(specs[i].name) || specs[i].write() != defaults[i].write();
    if (is_given && std::ranges::find(names, specs[i].name) != names.end()) {
      refuse_option(specs[i].name, reason);
    }
  }
}

std::set<int64_t> measured_experts(const CostOptions& options, int64_t experts) {
  if (options.measure_experts.empty()) return {experts, experts_after(options, experts)};
  return {options.measure_experts.begin(), options.measure_experts.end()};
}

int64_t measured_sequence(const CostOptions& o) {
  return std::min(kMeasuredSequence, o.measure_tokens.value_or(kMeasuredTokens));
}

int64_t measured_tokens(const CostOptions& o) {
  const int64_t tokens = o.measure_tokens.value_or(kMeasuredTokens);
  return tokens - tokens % measured_sequence(o);
}

std::vector<int64_t> simulated_gpus(const CostOptions& o) {
  return o.gpus.empty() ? std::vector{o.data_parallel} : o.gpus;
}

StepWork step_work(const CostOptions& o, int64_t gpus) {
  return {.batch_tokens = o.gpu_tokens ? static_cast<double>(*o.gpu_tokens * gpus) : o.batch_tokens,
          .sequence_length = o.sequence_length,
          .utilisation = o.utilisation,
          .recompute = o.recompute,
          .micro_tokens = static_cast<double>(o.micro_batch.value_or(1)) * o.sequence_length,
          .once_per_rank = o.once_per_rank};
}

StateBytes state_bytes(const CostOptions& o) {
  return {state_dtype_bytes("weight-dtype", o.weight_dtype), state_dtype_bytes("gradient-dtype", o.gradient_dtype),
          state_dtype_bytes("master-dtype", o.master_dtype, true), state_dtype_bytes("moment-dtype", o.moment_dtype)};
}

void check_options(const CostOptions& o, bool is_moe) {
  if (is_moe) {
    refuse_given(o, kOfDense, "the model has experts already, and top-K does not change");
  } else {
    refuse_given(o, kOfExperts, "the model is dense");
  }
  if (o.top_k && *o.top_k < 1) refuse(cat("top-k: ", *o.top_k, "; wanted 1 or more"));
  if (o.granularity && *o.granularity < 1) refuse(cat("granularity: ", *o.granularity, "; wanted 1 or more"));
  if (o.step_time_before.has_value() != o.step_time_after.has_value()) {
    refuse("step-time: wanted both --step-time-before and --step-time-after, for the same batch");
  }
  check_positive("tokens-before", o.tokens_before);
  check_positive("tokens-after", o.tokens_after);
  check_positive("loss-gap", o.loss_gap, 100);
  check_positive("step-time-before", o.step_time_before);
  check_positive("step-time-after", o.step_time_after);
  check_positive("batch-tokens", o.batch_tokens);
  check_positive("sequence-length", o.sequence_length);
  check_positive("utilisation", o.utilisation, 1);
  check_positive("device-flops", o.device_flops);
  check_positive("device-memory-rate", o.device_memory_rate);
  check_positive("device-network-rate", o.device_network_rate);
  if (!(o.target_closure > 0 && o.target_closure < 1)) {
    refuse(cat("target-closure: ", number_text(o.target_closure), "; wanted a number between 0 and 1"));
  }
  check_measuring(o);
  check_simulating(o);
}

}  // namespace coppice::cost
