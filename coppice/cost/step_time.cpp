#include "coppice/cost/step_time.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::cost {
namespace {

constexpr std::array<Device, 4> kDevices = {{
    {"a100", 312e12, 2.039e12, 300e9, 80e9, "NVIDIA A100 SXM 80 GB data sheet; NVLink 600 GB/s both ways"},
    {"h100", 989e12, 3.35e12, 450e9, 80e9, "NVIDIA H100 SXM data sheet, without sparsity; NVLink 900 GB/s both ways"},
    {"h200", 989e12, 4.8e12, 450e9, 141e9, "NVIDIA H200 SXM data sheet, without sparsity; NVLink 900 GB/s both ways"},
    {"b200", 2.25e15, 8e12, 900e9, 180e9, "NVIDIA HGX B200 data sheet, without sparsity; NVLink 1.8 TB/s both ways"},
}};

}  // namespace

const Device& device(std::string_view name) {
  const auto* found = std::ranges::find(kDevices, name, &Device::name);
  if (found != kDevices.end()) return *found;
  std::vector<std::string> names;
  for (const Device& known : kDevices) names.emplace_back(known.name);
  throw Error(ErrorCode::kUsage, cat("device: '", name, "' is not known", suggestion(name, names)));
}

bool is_tied(const ModelSize& size) {
  // Tied embeddings are counted once and multiplied once; untied ones are counted twice.
  return static_cast<double>(size.parameters.embeddings) < 1.5 * static_cast<double>(size.vocab_size * size.model_dim);
}

double flops_per_token(const ModelSize& size, double sequence_length, bool recompute) {
  const auto lookup = static_cast<double>(size.vocab_size * size.model_dim);
  const double multiplied = static_cast<double>(size.parameters.active) - (is_tied(size) ? 0 : lookup);
  const double layers =
      2 * (multiplied - lookup) + 2 * static_cast<double>(size.num_layers * size.attention_width) * sequence_length;
  return (recompute ? 4 : 3) * layers + 6 * lookup;
}

double micro_batches(const StepWork& work, double tokens) {
  return work.micro_tokens > 0 ? std::max(1.0, std::ceil(tokens / work.micro_tokens)) : 1;
}

Exchange exchange_of(const StateBytes& bytes, const StepWork& work, double tokens) {
  return {bytes.weight, work.recompute, work.once_per_rank, micro_batches(work, tokens)};
}

double optimizer_seconds(const ModelSize& size, const Device& device, const Parallelism& parallelism,
                         const StateBytes& bytes) {
  const auto ranks = static_cast<double>(parallelism.zero1 ? parallelism.data : 1);
  const auto replicas = parallelism.zero1 ? ranks / static_cast<double>(parallelism.expert) : 1;
  const auto [experts, others] = local_parameters(size, parallelism);
  const auto touched = static_cast<double>(bytes.gradient + 2 * bytes.optimizer() + bytes.weight);
  return (experts / replicas + others / ranks) * touched / device.memory_per_s;
}

StepEstimate estimate_step(const ModelSize& size, const Device& device, const Parallelism& parallelism,
                           const StateBytes& bytes, const StepWork& work) {
  const double tokens = work.batch_tokens / static_cast<double>(parallelism.data);
  const Traffic traffic = expected_traffic(size, parallelism, bytes, tokens, exchange_of(bytes, work, tokens));
  return {.compute_s = flops_per_token(size, work.sequence_length, work.recompute) * tokens /
                       (device.flops_per_s * work.utilisation),
          .optimizer_s = optimizer_seconds(size, device, parallelism, bytes),
          .all_to_all_s = static_cast<double>(traffic.all_to_all) / device.network_per_s,
          .reduce_s = static_cast<double>(traffic.reduce_scatter + traffic.all_gather) / device.network_per_s};
}

StepLine fit_step_line(const std::vector<std::pair<int64_t, double>>& measured) {
  const auto n = static_cast<double>(measured.size());
  double mean_experts = 0, mean_seconds = 0;
  for (const auto& [experts, seconds] : measured) {
    mean_experts += static_cast<double>(experts) / n;
    mean_seconds += seconds / n;
  }
  double covariance = 0, variance = 0;
  for (const auto& [experts, seconds] : measured) {
    const double away = static_cast<double>(experts) - mean_experts;
    covariance += away * (seconds - mean_seconds);
    variance += away * away;
  }
  COPPICE_CHECK(variance > 0, "step times of one number of experts");
  const double slope = covariance / variance;
  return {mean_seconds - slope * mean_experts, slope};
}

}  // namespace coppice::cost
