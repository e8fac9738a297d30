#include "coppice/demo/arms.h"

#include <chrono>

#include "coppice/base/check.h"
#include "coppice/base/log.h"
#include "coppice/demo/siblings.h"
#include "coppice/eval/perplexity.h"
#include "coppice/grow/expand.h"
#include "coppice/io/atomic_file.h"
#include "coppice/nn/device.h"
#include "coppice/plan/selection.h"
#include "coppice/report/run_record.h"
#include "coppice/score/score.h"
#include "coppice/train/run.h"
#include "coppice/verify/verify.h"

namespace coppice::demo {
namespace {

constexpr int64_t kSequenceLength = 128;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<data::TokenFile> training_files(const PreparedData& data) {
  std::vector<data::TokenFile> files;
  for (const auto& domain : data.domains) files.push_back(data::TokenFile::open(domain.train));
  return files;
}

// What all arms share; an arm changes where it starts and stops.
train::TrainOptions common_options(const SeedSetting& setting) {
  const auto& options = setting.options;
  const auto plan = budget(options);
  train::TrainOptions out;
  out.model_family = "glm4_moe";  // its selection bias stays F32 on load: transformers routes as it was trained
  out.vocab_size = options.vocab_size;
  out.model_dim = options.model_dim;
  out.num_layers = options.layers;
  out.num_heads = out.num_kv_heads = 4;
  out.head_dim = options.model_dim / 4;
  out.num_experts = options.base_experts;
  out.top_k = options.top_k;
  out.expert_width = options.expert_width;
  out.dense_width = options.expert_width * options.top_k;
  out.first_dense_layers = 0;
  out.tokenizer = setting.data.tokenizer;
  for (const auto& domain : setting.data.domains) {
    out.data_train.push_back(domain.train);
    out.data_validation.push_back(domain.validation);
    out.data_weights.push_back(1);
  }
  out.sequence_length = kSequenceLength;
  out.seed = setting.seed;
  out.steps = plan.steps;
  out.batch_tokens = plan.batch_tokens;
  out.micro_batch = plan.batch_tokens / kSequenceLength;
  out.dtype = "f32";  // at these sizes bf16 saves no time
  out.threads = setting.threads;
  out.device = options.device;
  out.validate_every = std::max<int64_t>(1, plan.steps / 20);
  out.validation_tokens = 4096;
  out.lr = 2e-3;
  out.warmup = plan.steps / 20;
  out.schedule = "wsd";
  out.anneal_share = 0.25;
  out.balance = "loss_free";
  // u = 1e-3 is tuned for tens of thousands of steps; a short run needs the same reach of the bias (literature.md
  // section 2).
  out.balance_rate = std::clamp(10.0 / static_cast<double>(plan.steps), 1e-3, 1e-2);
  out.keep_last = 1;
  return out;
}

// Mean over the domains' validation losses, by tokens seen.
std::vector<std::pair<double, double>> validation_curve(const std::filesystem::path& run_directory) {
  const auto run = report::RunRecord::read(run_directory);
  std::map<double, double> tokens_of_step;
  const auto& seen = run.series.at("tokens_seen");
  tokens_of_step.insert(seen.begin(), seen.end());
  std::map<double, std::pair<double, int>> sums;
  for (const auto& [tag, points] : run.series) {
    if (!tag.starts_with("validation/")) continue;
    for (const auto& [step, value] : points) {
      auto& [sum, count] = sums[step];
      sum += value;
      ++count;
    }
  }
  std::vector<std::pair<double, double>> curve;
  for (const auto& [step, sum] : sums) curve.emplace_back(tokens_of_step.at(step), sum.first / sum.second);
  return curve;
}

void evaluate(const SeedSetting& setting, const std::filesystem::path& checkpoint, ArmResult& arm) {
  const uint64_t tokens = budget(setting.options).evaluation_tokens;
  const auto model = nn::Decoder::load(families::open_model(checkpoint), nn::ComputeDtype::kF32,
                                       nn::compute_device(setting.options.device));
  for (const auto& domain : setting.data.domains) {
    const auto loss = eval::token_loss(model, data::TokenFile::open(domain.validation),
                                       {.sequence_length = kSequenceLength, .batch = 32, .max_tokens = tokens});
    arm.loss[domain.name] = loss.loss;
    auto& rows = arm.expert_share[domain.name];
    for (const auto& counts : loss.expert_counts) {
      double total = 0;
      for (const auto count : counts) total += static_cast<double>(count);
      auto& row = rows.emplace_back();
      for (const auto count : counts) row.push_back(static_cast<double>(count) / total);
    }
  }
}

struct Trained {
  ArmResult arm;
  std::filesystem::path checkpoint;
};

Trained train_arm(const SeedSetting& setting, train::TrainOptions options, std::string_view name) {
  options.out = setting.directory / name;
  log_info(cat("training ", options.out));
  const auto start = std::chrono::steady_clock::now();
  const auto done = train::train(options, setting.on_step);
  Trained out{.checkpoint = done.checkpoint};
  out.arm.train_seconds = seconds_since(start);
  out.arm.seconds_per_step = done.seconds_per_step;
  out.arm.steps = done.last_step - done.first_step;
  out.arm.curve = validation_curve(options.out);
  evaluate(setting, done.checkpoint, out.arm);
  return out;
}

// Scores the trunk, expands it and checks every tensor of the result; returns the plan.
plan::GrowthPlan grow(const SeedSetting& setting, const std::filesystem::path& trunk) {
  const auto& directory = setting.directory;
  const auto threads = static_cast<size_t>(setting.threads);
  const auto model = families::open_model(trunk);
  plan::GrowthOptions growth;
  growth.experts = setting.options.experts;
  growth.select = setting.options.select;
  growth.seed = setting.seed;
  std::optional<plan::Scores> scores;
  if (plan::selection_rule(*growth.select).needs_scores) {
    scores = score::score_model(model, training_files(setting.data),
                                {.batches = 10,
                                 .batch_tokens = 8192,
                                 .sequence_length = kSequenceLength,
                                 .seed = setting.seed + 1000003,
                                 .device = nn::compute_device(setting.options.device)});
    io::write_file_atomically(directory / "scores.json", scores->to_json().dump(1) + "\n");
  }
  const auto plan = plan::make_plan(model.config, growth, scores ? &*scores : nullptr);
  const auto expanded = directory / "expanded";
  grow::expand(model, plan, {.out = expanded, .threads = threads});
  const auto check = verify::verify(model, families::open_model(expanded), threads);
  io::write_file_atomically(directory / "verify.json", check.to_json().dump(1) + "\n");
  COPPICE_CHECK(check.ok, "the expanded model failed verification: ", join_some(check.problems, 3, "; "));
  return plan;
}

}  // namespace

void run_grown(const SeedSetting& setting, SeedResult& result) {
  auto trunk_options = common_options(setting);
  trunk_options.stop_at = budget(setting.options).growth_step;
  const auto trunk = train_arm(setting, trunk_options, "trunk");
  result.trunk = trunk.arm;

  const auto start = std::chrono::steady_clock::now();
  const auto plan = grow(setting, trunk.checkpoint);
  result.surgery_seconds = seconds_since(start);
  evaluate(setting, setting.directory / "expanded", result.expanded);

  auto continued = common_options(setting);
  continued.start = "continue";
  continued.model_path = trunk.checkpoint;
  result.control = train_arm(setting, continued, "control").arm;

  continued.model_path = setting.directory / "expanded";
  const auto upcycled = train_arm(setting, continued, "upcycled");
  result.upcycled = upcycled.arm;
  measure_siblings(families::open_model(upcycled.checkpoint), plan, result);
}

void run_from_scratch(const SeedSetting& setting, SeedResult& result) {
  auto options = common_options(setting);
  options.num_experts = setting.options.experts.resolve(options.num_experts);
  result.scratch = train_arm(setting, options, "scratch").arm;
}

}  // namespace coppice::demo
