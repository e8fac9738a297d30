#include <iostream>
#include <optional>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/device.h"
#include "coppice/cli/ranks.h"
#include "coppice/cli/threads.h"
#include "coppice/data/token_file.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/output_place.h"
#include "coppice/nn/decoder.h"
#include "coppice/options/byte_count.h"
#include "coppice/options/options.h"
#include "coppice/score/score.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary = "measure the utility of every expert on calibration tokens";

struct ScoreOptions {
  std::filesystem::path model;
  std::vector<std::filesystem::path> tokens;
  std::filesystem::path out;
  bool merge = false;
  uint64_t batches = 10, batch_tokens = 8192, seed = 0;
  int64_t sequence_length = 256;
  std::string dtype = "f32", device{kAutoDevice};
  std::optional<ByteCount> max_memory;
  bool reset_attention = false, resume = false;
  int64_t expert_parallel = 1;
  std::optional<uint64_t> threads;
  bool json = false;
  Given given;

  static constexpr auto fields() {
    using O = ScoreOptions;
    return std::tuple{
        operand("MODEL", &O::model, "model directory in Hugging Face format"),
        operand("TOKENS", &O::tokens, "token files to calibrate on (prefixes of .bin/.idx pairs)"),
        field("out", &O::out, "file to write, for `coppice expand --scores`; an earlier file of scores is replaced"),
        field("merge", &O::merge,
              "merge scores of several runs over one model: MODEL and TOKENS are the files of scores"),
        field("batches", &O::batches, "number of calibration batches"),
        field("batch-tokens", &O::batch_tokens, "tokens per batch"),
        field("sequence-length", &O::sequence_length, "tokens per window"),
        field("reset-attention", &O::reset_attention, "attention stays within a document, and positions restart at 0"),
        field("seed", &O::seed, "random seed of the chosen windows"),
        field("dtype", &O::dtype, "dtype of the computation: f32 or bf16"),
        field("device", &O::device, kDeviceHelp),
        field("max-memory", &O::max_memory,
              "most memory for weights, gradients and kept activations, such as 8GiB; the rest goes to disk beside the "
              "scores (default: half of the device's)"),
        field(
            "expert-parallel", &O::expert_parallel,
            "under torchrun, srun or mpirun: number of ranks that share the experts of each layer; divides the number "
            "of ranks"),
        field("resume", &O::resume, "continue a killed run of the same command"),
        field("threads", &O::threads, "CPU threads (default: all cores)"),
        field("json", &O::json, kJsonHelp)};
  }
};

plan::Scores score_files(const ScoreOptions& o, const Ranks& ranks) {
  const auto dtype = nn::compute_dtype(o.dtype);
  const auto device = use_device(o.device);
  const auto model = families::open_model(o.model);
  const auto files = data::open_token_files(o.model, model.config.vocab_size, o.tokens);
  return score::score_model(model, files,
                            {.batches = o.batches,
                             .batch_tokens = o.batch_tokens,
                             .sequence_length = o.sequence_length,
                             .reset_attention = o.reset_attention,
                             .seed = o.seed,
                             .dtype = dtype,
                             .device = device,
                             .max_memory_bytes = o.max_memory ? o.max_memory->bytes : 0,
                             .out = o.out,
                             .resume = o.resume,
                             .world = ranks.world});
}

plan::Scores merge_files(const ScoreOptions& o) {
  std::vector<plan::Scores> runs{plan::Scores::read(o.model)};
  for (const auto& path : o.tokens) runs.push_back(plan::Scores::read(path));
  return plan::merge_scores(runs);
}

void check_out(const ScoreOptions& o) {
  auto inputs = o.tokens;
  inputs.push_back(o.model);
  io::check_output_file(o.out, {"scores of experts", plan::Scores::is_file}, inputs);
}

void check(const ScoreOptions& o) {
  if (o.out.empty()) {
    throw Error(ErrorCode::kUsage, "out: not given; wanted the file to write, such as --out scores.json");
  }
  refuse_without_effect(o.given, {{o.merge,
                                   "a merge only reads files of finished runs",
                                   {"batches", "batch-tokens", "seed", "sequence-length", "reset-attention", "dtype",
                                    "device", "max-memory", "expert-parallel", "resume", "threads"}}});
}

void print(const ScoreOptions& o, const plan::Scores& scores) {
  std::vector<std::string> names, without;
  for (const auto& metric : plan::utility_metrics()) {
    (scores.metrics.contains(std::string(metric.name)) ? names : without).emplace_back(metric.name);
  }
  std::cout << cat("wrote ", shown(o.out.string()), ": ", scores.metrics.begin()->second.fc1.sum.size(),
                   " layers with ", scores.experts, " experts each, from ",
                   count_text(static_cast<double>(scores.tokens_seen)), " tokens\nmetrics: ", join(names), "\n");
  if (o.merge && !without.empty()) {
    std::cout << cat("left out, because they cannot be merged: ", join(without), "\n");
  }
  if (scores.second_moment == "batches") {
    std::cout << "approx_fisher: uses second moments estimated from the batches, because the model has no trainer/\n";
  }
}

void score_or_merge(const ScoreOptions& o, const Ranks& ranks) {
  if (o.merge && !ranks.is_first()) return;
  check_out(o);
  use_threads(o.threads);
  const auto scores = o.merge ? merge_files(o) : score_files(o, ranks);
  if (!ranks.is_first()) return;
  const Json json = scores.to_json();
  io::write_file_atomically(o.out, json.dump(1) + "\n");
  if (o.json) {
    std::cout << json.dump(2) << "\n";
  } else {
    print(o, scores);
  }
}

int run(std::span<const std::string_view> args) {
  const auto options = parse<ScoreOptions>("score", kSummary, args);
  check(options);
  on_ranks(options, options.expert_parallel, args, score_or_merge);
  return 0;
}

}  // namespace

extern const Command kScore;
const Command kScore{"score", kSummary, run};

}  // namespace coppice::cli
