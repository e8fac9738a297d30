#include "coppice/cost/memory.h"

#include <algorithm>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::cost {

ModelSize model_size(const families::Model& model, int64_t num_experts) {
  const auto& config = model.config;
  const auto trained = [&](int64_t layer) { return layer < config.num_layers; };  // without multi-token prediction
  return {.experts = num_experts > 0 ? num_experts : config.num_experts,
          .top_k = config.is_moe() ? config.mean_top_k() : 0,
          .parameters = families::count_parameters(model, num_experts),
          .moe_layers = std::ranges::count_if(model.layers_with_experts, trained),
          .num_layers = config.num_layers,
          .model_dim = config.model_dim,
          .vocab_size = config.vocab_size,
          .attention_width = config.num_heads * config.head_dim};
}

void check_parallelism(const Parallelism& parallelism, int64_t experts_before, int64_t experts_after) {
  const auto [data, expert, zero1] = parallelism;
  const auto refuse = [](const std::string& message) { throw Error(ErrorCode::kUsage, message); };
  if (data < 1) refuse(cat("data-parallel: ", data, "; wanted 1 or more"));
  if (expert < 1) refuse(cat("expert-parallel: ", expert, "; wanted 1 or more"));
  if (data % expert != 0) {
    refuse(
        cat("expert-parallel: ", expert, " does not divide the ", data, " data-parallel ranks (see --data-parallel)"));
  }
  for (const int64_t experts : {experts_before, experts_after}) {
    if (experts > 0 && experts < expert) {
      refuse(cat("expert-parallel: ", experts, " experts are fewer than the ", expert, " ranks that share them"));
    }
  }
  if (zero1 && data == 1) refuse("zero1: has no effect with one rank (give --data-parallel)");
}

int64_t state_dtype_bytes(std::string_view option, std::string_view dtype, bool may_be_none) {
  if (dtype == "f32") return 4;
  if (dtype == "bf16" || dtype == "f16") return 2;
  if (may_be_none && dtype == "none") return 0;
  throw Error(ErrorCode::kUsage,
              cat(option, ": '", dtype, "'; wanted f32, bf16", may_be_none ? ", f16 or none" : " or f16"));
}

int64_t most_experts(const ModelSize& size, const Parallelism& parallelism) {
  return (size.experts + parallelism.expert - 1) / parallelism.expert;
}

LocalParameters local_parameters(const ModelSize& size, const Parallelism& parallelism) {
  const auto all = static_cast<double>(size.parameters.experts);
  const double each = size.experts > 0 ? all / static_cast<double>(size.experts) : 0;
  return {each * static_cast<double>(most_experts(size, parallelism)),
          static_cast<double>(size.parameters.total) - all};
}

DeviceMemory device_memory(const ModelSize& size, const Parallelism& parallelism, const StateBytes& bytes) {
  const auto [experts, others] = local_parameters(size, parallelism);
  const auto of = [](double parameters, int64_t each) {
    return static_cast<uint64_t>(std::ceil(parameters)) * static_cast<uint64_t>(each);
  };
  const auto data = static_cast<double>(parallelism.zero1 ? parallelism.data : 1);
  const auto replicas = parallelism.zero1 ? data / static_cast<double>(parallelism.expert) : 1;
  return {.weights = of(experts + others, bytes.weight),
          .gradients = of(experts + others, bytes.gradient),
          .optimizer = of(experts / replicas + others / data, bytes.optimizer())};
}

}  // namespace coppice::cost
