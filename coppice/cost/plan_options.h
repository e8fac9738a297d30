#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "coppice/base/options.h"
#include "coppice/cost/memory.h"
#include "coppice/plan/plan.h"

namespace coppice::cost {

/// What the user may say of an expansion that is being weighed.
struct PlanOptions {
  std::filesystem::path model;
  std::optional<std::filesystem::path> family_file;
  std::optional<plan::ExpertCount> experts;
  std::optional<int64_t> top_k, granularity;

  std::optional<double> tokens_before, tokens_after, loss_gap;
  double target_closure = 0.9;

  int64_t data_parallel = 1, expert_parallel = 1;
  bool zero1 = false;
  std::string weight_dtype = "bf16", gradient_dtype = "f32", master_dtype = "f32", moment_dtype = "f32";

  std::optional<double> step_time_before, step_time_after;
  std::string device = "h100";
  double batch_tokens = 4194304, sequence_length = 4096, utilisation = 0.468;
  std::optional<double> device_flops, device_memory_rate, device_network_rate;

  bool measure = false;
  std::vector<int64_t> measure_experts;
  std::optional<int64_t> measure_tokens, measure_steps;
  std::optional<std::string> measure_dtype;
  std::optional<uint64_t> threads;

  std::vector<std::filesystem::path> fit;
  bool json = false;
  Given given;

  static constexpr auto fields() {
    using O = PlanOptions;
    return std::tuple{
        operand("MODEL", &O::model, "model directory in Hugging Face format (only read)"),
        field("experts", &O::experts,
              "number of experts afterwards: 2x (default), 1.5x or 48; of a dense model: all of them (default: 8)"),
        field("top-k", &O::top_k, "of a dense model: experts a token afterwards (default: 2)"),
        field("granularity", &O::granularity,
              "of a dense model: an expert is the dense layer's width over this (default: 1)"),
        field("family-file", &O::family_file,
              "TOML file that describes the model's family, for one that coppice does not know"),
        field("tokens-before", &O::tokens_before, "tokens tau that the model has seen, or will have, with E experts"),
        field("tokens-after", &O::tokens_after, "tokens of continued pre-training with N experts"),
        field("loss-gap", &O::loss_gap, "L_E - L_N in nats, if you know it; turns gap closure into nats"),
        field("target-closure", &O::target_closure, "share of the gap to close, for when to expand"),
        field("data-parallel", &O::data_parallel, "ranks"),
        field("expert-parallel", &O::expert_parallel, "ranks, of those, over which the experts are spread"),
        field("zero1", &O::zero1, "optimizer state sharded over the ranks"),
        field("weight-dtype", &O::weight_dtype, "of the weights in training: bf16, f16 or f32"),
        field("gradient-dtype", &O::gradient_dtype, "of summed gradients"),
        field("master-dtype", &O::master_dtype, "of the optimizer's own weights; none where it has none"),
        field("moment-dtype", &O::moment_dtype, "of Adam's two moments"),
        field("step-time-before", &O::step_time_before, "seconds a step with E experts, as you measured it"),
        field("step-time-after", &O::step_time_after, "seconds a step with N experts on the same batch"),
        field("batch-tokens", &O::batch_tokens, "tokens of one optimizer step, over all ranks"),
        field("sequence-length", &O::sequence_length, "tokens of a sequence"),
        field("device", &O::device, "for the step-time model: a100, h100 or h200"),
        field("device-flops", &O::device_flops, "bf16 FLOP/s of another device"),
        field("device-memory-rate", &O::device_memory_rate, "its bytes of memory a second"),
        field("device-network-rate", &O::device_network_rate, "its bytes a second to others, one direction"),
        field("utilisation", &O::utilisation, "share of the FLOP/s that matrix products reach"),
        field("measure", &O::measure, "time real training steps here, of a random model of this shape"),
        field("measure-experts", &O::measure_experts,
              "numbers of experts to time (default: E and N); N is predicted where it is not among them"),
        field("measure-tokens", &O::measure_tokens, "tokens of a timed step (default: 2048)"),
        field("measure-steps", &O::measure_steps,
              "steps of each of four rounds (default: 5, after 2 that do not count)"),
        field("measure-dtype", &O::measure_dtype, "compute of timed steps: bf16 (default) or f32"),
        field("threads", &O::threads, "threads of timed steps (default: all cores)"),
        field("fit", &O::fit, "your own runs (folders): their losses and step times replace published constants"),
        field("json", &O::json, kJsonHelp)};
  }
};

/// The number of experts that is meant for a model with `experts` of them.
inline int64_t experts_after(const PlanOptions& options, int64_t experts) {
  return options.experts.value_or(plan::ExpertCount{}).resolve(experts);
}

/// Tokens of one timed step of --measure: whole sequences.
int64_t measured_sequence(const PlanOptions& options);
int64_t measured_tokens(const PlanOptions& options);

/// Throws   Error{kUsage}: a dtype that training state cannot have.
StateBytes state_bytes(const PlanOptions& options);

/// Throws   Error{kUsage} for values that make no sense and for settings that have no effect on a model with experts
///          (or on a dense one).
void check_options(const PlanOptions& options, bool is_moe);

/// Throws   Error{kUsage} naming the first of `names` that was given, or is not its default: it has no effect, for
///          `reason`.
void refuse_given(const PlanOptions& options, std::span<const std::string_view> names, std::string_view reason);

}  // namespace coppice::cost
