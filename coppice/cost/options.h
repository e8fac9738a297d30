#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "coppice/cost/memory.h"
#include "coppice/cost/step_time.h"
#include "coppice/infer/given_family.h"
#include "coppice/options/options.h"
#include "coppice/plan/plan.h"

namespace coppice::cost {

/// The options of `coppice plan`.
struct CostOptions {
  std::filesystem::path model;
  std::optional<std::filesystem::path> family_file;
  std::optional<plan::ExpertCount> experts;
  std::optional<int64_t> top_k, granularity;

  std::optional<double> tokens_before, tokens_after, loss_gap;
  double target_closure = 0.9;

  int64_t data_parallel = 1, expert_parallel = 1;
  std::optional<int64_t> expert_parallel_after;
  bool zero1 = false, recompute = false;
  std::string weight_dtype = "bf16", gradient_dtype = "f32", master_dtype = "f32", moment_dtype = "f32";

  std::optional<double> step_time_before, step_time_after;
  std::string device = "h100";
  double batch_tokens = 4194304, sequence_length = 4096, utilisation = 0.468;
  std::optional<double> device_flops, device_memory_rate, device_network_rate;
  std::optional<std::string> cluster;
  std::vector<int64_t> gpus;
  std::optional<int64_t> gpu_tokens, micro_batch;
  bool once_per_rank = false;

  bool measure = false;
  std::vector<int64_t> measure_experts;
  std::optional<int64_t> measure_tokens, measure_steps;
  std::optional<std::string> measure_dtype, measure_device;
  std::optional<uint64_t> threads;

  std::vector<std::filesystem::path> fit;
  bool json = false;
  Given given;

  static constexpr auto fields() {
    using O = CostOptions;
    return std::tuple{
        operand("MODEL", &O::model, "model directory in Hugging Face format (never changed)"),
        field("experts", &O::experts,
              "number of experts afterwards: 2x (default), 1.5x or 48; for a dense model: a number (default: 8)"),
        field("top-k", &O::top_k, "for a dense model: experts per token afterwards (default: 2)"),
        field("granularity", &O::granularity,
              "for a dense model: width of the dense layer divided by the width of an expert (default: 1)"),
        field("family-file", &O::family_file, infer::kFamilyFileHelp),
        field("tokens-before", &O::tokens_before, "tokens of training with E experts before the expansion (tau)"),
        field("tokens-after", &O::tokens_after, "tokens of training with N experts after the expansion"),
        field("loss-gap", &O::loss_gap, "L_E - L_N in nats, if you know it; gap closure is then given in nats too"),
        field("target-closure", &O::target_closure, "share of the gap to close, for the advice when to expand"),
        field("data-parallel", &O::data_parallel, "number of data-parallel ranks"),
        field("expert-parallel", &O::expert_parallel,
              "number of those ranks that share one set of experts; must divide --data-parallel or --gpus"),
        field("expert-parallel-after", &O::expert_parallel_after,
              "the same for N experts (default: as --expert-parallel)"),
        field("zero1", &O::zero1, "shard the optimizer state over the ranks (ZeRO-1)"),
        field("recompute", &O::recompute, "the backward pass computes every layer again (activation recomputation)"),
        field("weight-dtype", &O::weight_dtype, "dtype of the weights in training: bf16, f16 or f32"),
        field("gradient-dtype", &O::gradient_dtype, "dtype of accumulated gradients"),
        field("master-dtype", &O::master_dtype, "dtype of master weights; none if the optimizer has none"),
        field("moment-dtype", &O::moment_dtype, "dtype of Adam's two moments"),
        field("step-time-before", &O::step_time_before, "measured seconds per step with E experts"),
        field("step-time-after", &O::step_time_after, "measured seconds per step with N experts on the same batch"),
        field("batch-tokens", &O::batch_tokens, "tokens per optimizer step, over all ranks"),
        field("sequence-length", &O::sequence_length, "tokens per sequence"),
        field("device", &O::device, "GPU of the step-time model: a100, h100, h200 or b200"),
        field("device-flops", &O::device_flops, "bf16 FLOP/s of another device than these"),
        field("device-memory-rate", &O::device_memory_rate, "memory bandwidth of that device in bytes per second"),
        field("device-network-rate", &O::device_network_rate,
              "network bandwidth of that device in bytes per second, one direction"),
        field("cluster", &O::cluster,
              "simulate steps on this cluster: nvlink4-ndr, nvlink5-ndr, nvlink3-hdr, nvlink3-efa, nvlink4-100g, "
              "ethernet-100g, ethernet-25g, ethernet-10g, or a file of measured points (docs/scaling.md)"),
        field("gpus", &O::gpus,
              "numbers of GPUs to simulate; the first takes the place of --data-parallel in the rest of the output"),
        field("gpu-tokens", &O::gpu_tokens,
              "tokens of one GPU per optimizer step, in simulated steps; takes the place of --batch-tokens"),
        field("micro-batch", &O::micro_batch, "sequences of one GPU per forward pass, in simulated steps (default: 1)"),
        field("once-per-rank", &O::once_per_rank,
              "in simulated steps, send a token once to a GPU that has several of its experts"),
        field("utilisation", &O::utilisation, "share of the peak FLOP/s that matrix products reach"),
        field("measure", &O::measure, "time real training steps on this machine, with a random model of this shape"),
        field("measure-experts", &O::measure_experts,
              "numbers of experts to time (default: E and N); if N is not among them, its time is predicted"),
        field("measure-tokens", &O::measure_tokens, "tokens per timed step (default: 2048)"),
        field("measure-steps", &O::measure_steps,
              "timed steps in each of four rounds, after 2 that do not count (default: 5)"),
        field("measure-dtype", &O::measure_dtype, "dtype of timed steps: bf16 (default) or f32"),
        field("measure-device", &O::measure_device,
              "device of timed steps: auto (a GPU if there is one; default), cpu, cuda or cuda:N"),
        field("threads", &O::threads, "CPU threads of timed steps (default: all cores)"),
        field("fit", &O::fit, "directories of your own runs; their losses and step times replace published constants"),
        field("json", &O::json, kJsonHelp)};
  }
};

/// The number of experts afterwards for a model with `experts`.
inline int64_t experts_after(const CostOptions& options, int64_t experts) {
  return options.experts.value_or(plan::ExpertCount{}).resolve(experts);
}

/// The numbers of experts that --measure times: those of --measure-experts, or `experts` and the number afterwards.
std::set<int64_t> measured_experts(const CostOptions& options, int64_t experts);

/// Tokens of one timed step of --measure: whole sequences.
int64_t measured_sequence(const CostOptions& options);
int64_t measured_tokens(const CostOptions& options);

/// The numbers of GPUs to simulate; the first is that of the rest of the plan. Without --gpus: --data-parallel.
std::vector<int64_t> simulated_gpus(const CostOptions& options);

/// The work of a step on `gpus` GPUs.
StepWork step_work(const CostOptions& options, int64_t gpus);

/// Throws   Error{kUsage}: a dtype that training state cannot have.
StateBytes state_bytes(const CostOptions& options);

/// Throws   Error{kUsage} for values that are not valid, and for settings that have no effect for an MoE (or a dense)
///          model.
void check_options(const CostOptions& options, bool is_moe);

/// Throws   Error{kUsage} naming the first of `names` that was given or is not its default, because it has no effect,
///          for `reason`.
void refuse_given(const CostOptions& options, std::span<const std::string_view> names, std::string_view reason);

}  // namespace coppice::cost
