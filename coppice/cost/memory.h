#pragma once

#include <cstdint>
#include <string_view>

#include "coppice/families/match.h"

namespace coppice::cost {

/// The sizes of a model that determine its costs.
struct ModelSize {
  int64_t experts = 0;  ///< 0: dense
  double top_k = 0;     ///< the mean over the layers with experts
  families::ParameterCount parameters;
  int64_t moe_layers = 0, num_layers = 0, model_dim = 0, vocab_size = 0;
  int64_t attention_width = 0;  ///< heads * head_dim; 0 if the configuration does not say
};
/// The sizes of `model` with `num_experts` experts (0: its own number); top-K is unchanged.
ModelSize model_size(const families::Model& model, int64_t num_experts = 0);

/// Data-parallel ranks; experts are spread over groups of `expert` of them.
struct Parallelism {
  int64_t data = 1, expert = 1;
  bool zero1 = false;  ///< optimizer state sharded over the ranks that hold the same weights
};
/// Throws   Error{kUsage} naming the option: less than 1, ranks that do not divide, fewer experts than ranks of a group.
void check_parallelism(const Parallelism& parallelism, int64_t experts_before, int64_t experts_after);

/// Bytes per parameter in training.
struct StateBytes {
  int64_t weight = 2, gradient = 4, master = 4, moment = 4;  ///< master 0: there are no separate master weights
  int64_t optimizer() const { return master + 2 * moment; }
};
/// Bytes of a dtype of training state: "f32", "bf16", "f16", or "none" if `may_be_none`. Errors name `option`. Throws
/// Error{kUsage}.
int64_t state_dtype_bytes(std::string_view option, std::string_view dtype, bool may_be_none = false);

struct DeviceMemory {
  uint64_t weights = 0, gradients = 0, optimizer = 0;
  uint64_t total() const { return weights + gradients + optimizer; }
};
/// Memory   of one device without activations, which depend on top-K and not on the number of experts.
DeviceMemory device_memory(const ModelSize& size, const Parallelism& parallelism, const StateBytes& bytes);

/// Experts of a layer on the rank with the most: the first one of each expert group. Where this says what a device holds,
/// sends or computes, it is that rank's.
int64_t most_experts(const ModelSize& size, const Parallelism& parallelism);

/// Parameters that one device holds: of experts, and all others.
struct LocalParameters {
  double experts = 0, others = 0;
};
LocalParameters local_parameters(const ModelSize& size, const Parallelism& parallelism);

}  // namespace coppice::cost
