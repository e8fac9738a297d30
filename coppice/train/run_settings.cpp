#include "coppice/train/run_settings.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/families/limits.h"
#include "coppice/nn/device.h"
#include "coppice/step/balance.h"
#include "coppice/train/unused_options.h"

namespace coppice::train {
namespace {

constexpr int64_t kDefaultWarmup = -1;

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorCode::kUsage, message); }

void require_at_least(std::string_view name, int64_t value, int64_t least) {
  if (value < least) refuse(cat(name, ": ", value, "; wanted ", least, " or more"));
}

void require_one_of(std::string_view name, const std::string& value, std::vector<std::string> known) {
  if (std::find(known.begin(), known.end(), value) == known.end()) {
    refuse(cat(name, ": '", value, "' is unknown", suggestion(value, known)));
  }
}

void require_count(std::string_view name, int64_t value, int64_t least) {
  require_at_least(name, value, least);
  if (value > families::kMaxCount) refuse(cat(name, ": ", value, "; wanted at most ", families::kMaxCount));
}

void require_decay(std::string_view name, double value) {
  if (!(value >= 0 && value < 1)) refuse(cat(name, ": ", value, "; wanted a number from 0 to below 1"));
}

void require_not_negative(std::string_view name, double value) {
  if (!(value >= 0) || !std::isfinite(value)) refuse(cat(name, ": ", value, "; wanted a number, 0 or more"));
}

// Updates of weights and biases are computed in f32.
void require_rate(std::string_view name, double value) {
  if (!(value >= 0 && value <= std::numeric_limits<float>::max())) {
    refuse(cat(name, ": ", value, "; wanted a number of 0 or more within the range of f32"));
  }
}

// If it were 0 in f32, the update would divide by zero where all gradients have been zero, as for an expert without
// tokens.
void require_normal(std::string_view name, double value) {
  constexpr double kLeast = std::numeric_limits<float>::min(), kMost = std::numeric_limits<float>::max();
  if (!(value >= kLeast && value <= kMost)) {
    refuse(cat(name, ": ", value, "; wanted a number above 0 within the range of f32, such as 1e-8"));
  }
}

// Converts `train.tokens` to steps.
int64_t resolved_steps(const TrainOptions& o) {
  return o.steps > 0 ? o.steps : (o.tokens + o.batch_tokens - 1) / o.batch_tokens;
}

int64_t resolved_warmup(const TrainOptions& o) {
  return o.warmup == kDefaultWarmup ? std::min<int64_t>(100, resolved_steps(o) / 10) : o.warmup;
}

int64_t num_steps(const TrainOptions& o) {
  if ((o.steps > 0) == (o.tokens > 0)) {
    refuse(cat("train.steps is ", o.steps, " and train.tokens is ", o.tokens, "; wanted exactly one of them above 0"));
  }
  const int64_t steps = resolved_steps(o);
  if (steps > families::kMaxCount / o.batch_tokens) {
    refuse(cat("train.steps: ", steps, " of ", o.batch_tokens, " tokens; wanted at most ", families::kMaxCount,
               " tokens in all"));
  }
  return steps;
}

void check_values(const TrainOptions& o) {
  require_one_of("train.start", o.start, {"fresh", "continue"});
  require_one_of("train.dtype", o.dtype, {"bf16", "f32"});
  (void)nn::compute_device(o.device, "train.device");
  require_one_of("optimizer.moments", o.moments, {"bf16", "f32"});
  require_count("data.sequence_length", o.sequence_length, 1);
  require_count("train.batch_tokens", o.batch_tokens, 1);
  require_count("train.micro_batch", o.micro_batch, 1);
  require_count("train.steps", o.steps, 0);
  require_count("train.tokens", o.tokens, 0);
  require_at_least("train.stop_at", o.stop_at, 0);
  require_at_least("train.threads", o.threads, 0);
  if (static_cast<size_t>(o.threads) > most_threads()) {
    refuse(cat("train.threads: ", o.threads, "; wanted at most ", most_threads(), " on this machine"));
  }
  require_at_least("parallel.expert", o.expert_parallel, 1);
  if (!(o.parallel_timeout >= 1)) refuse(cat("parallel.timeout: ", o.parallel_timeout, " s; wanted 1 or more"));
  require_count("schedule.warmup", o.warmup, kDefaultWarmup);
  require_count("handover.steps", o.handover_steps, 0);
  require_at_least("train.validate_every", o.validate_every, 0);
  require_at_least("train.validation_tokens", o.validation_tokens, 1);
  require_at_least("checkpoint.every", o.checkpoint_every, 0);
  require_at_least("checkpoint.keep_last", o.keep_last, 1);
  require_at_least("checkpoint.keep_every", o.keep_every, 0);
  require_decay("optimizer.beta1", o.beta1);
  require_decay("optimizer.beta2", o.beta2);
  require_normal("optimizer.epsilon", o.epsilon);
  require_rate("optimizer.weight_decay", o.weight_decay);
  require_not_negative("optimizer.clip", o.clip);
  require_not_negative("optimizer.spike_limit", o.spike_limit);
  require_at_least("balance.dead_after", o.dead_after, 0);
  require_rate("balance.rate", o.balance_rate);
  require_rate("balance.aux_coef", o.aux_coef.value_or(0));
  (void)step::balance_form(o.balance_form);
  require_rate("balance.z_coef", o.z_coef);
}

void check_together(const TrainOptions& o) {
  if (o.random_tokens && !o.data_train.empty())
    refuse("data.random: has no effect with data.train (leave one of them out)");
  if (o.random_tokens && o.reset_attention)
    refuse("data.reset_attention: has no effect with data.random (leave it out)");
  if (o.data_train.empty() && !o.random_tokens) {
    refuse("data.train: empty; wanted token files (make them with `coppice tokenize TEXT --out DATA`)");
  }
  if (!o.data_weights.empty() && o.data_weights.size() != o.data_train.size()) {
    refuse(cat("data.weights: ", o.data_weights.size(), " weights for ", o.data_train.size(),
               " files; wanted one weight per file"));
  }
  if (o.batch_tokens % o.sequence_length != 0) {
    refuse(cat("train.batch_tokens: ", o.batch_tokens, "; wanted a multiple of data.sequence_length, ",
               o.sequence_length));
  }
  if (o.resume && o.out.empty())
    refuse("train.resume: has no effect without train.out (give the directory of the run)");
  if (o.start == "continue" && o.model_path.empty()) {
    refuse("train.start: 'continue' without model.path (give the checkpoint to continue from)");
  }
  if (o.out.empty() && (o.checkpoint_every > 0 || o.keep_every > 0)) {
    refuse("checkpoint: checkpoints cannot be written without train.out (give the directory of the run)");
  }
}

// The handover of one expansion must be complete before the next; an expansion that changes top-K needs no handover.
void check_handover(const RunSettings& run) {
  if (run.handover.policy == HandoverPolicy::kNone) return;
  for (size_t i = 0; i < run.stages.size(); ++i) {
    const GrowthStage& stage = run.stages[i];
    if (stage.scale_top_k || stage.split > 1) {
      refuse(cat("growth ", i + 1, ": keeps the function without a handover (set handover.policy none)"));
    }
    if (i == 0) continue;  // GrowthCourse checks the handover of the model at the start
    const int64_t since = stage.at_step - run.stages[i - 1].at_step;
    if (run.handover.policy == HandoverPolicy::kDormant && run.handover.steps == 0) {
      refuse(cat("growth ", i + 1, ": copies of the expansion before it may still be dormant at step ", stage.at_step,
                 " (set handover.steps, after which they are awake)"));
    }
    const bool asleep = run.handover.policy == HandoverPolicy::kDormant && since < run.handover.steps;
    if (asleep || run.handover.share(since + 1) > 0) {
      refuse(cat("growth ", i + 1, ": the handover of the expansion before it is not complete at step ", stage.at_step,
                 " (lower handover.steps, or expand later)"));
    }
  }
}

constexpr std::string_view kSteps = "train.steps", kWarmup = "schedule.warmup";
constexpr std::string_view kAuxCoef =
    "balance.aux_coef";  // if left out, the model's own: see check_same_auxiliary_loss

// coppice 0.1.0 did not save the length of a run in its checkpoints, nor the number of warm-up steps that follows from
// it.
bool has_unknown_rates(const save::TrainerState& saved) { return saved.settings.find(kSteps) == nullptr; }

constexpr std::string_view kDigest = "sha256";

// Describes how the training data differs from that of the run before; empty if it does not.
std::optional<std::string> data_change(const Json::Array& before, const Json::Array& now) {
  const auto without_digest = [](Json file) {
    file.erase(kDigest);
    return file.dump();
  };
  const auto listed = [&](const Json::Array& files) {
    Json::Array out;
    for (const Json& file : files) out.push_back(Json::parse(without_digest(file), "data"));
    return Json::array(std::move(out)).dump();
  };
  if (listed(before) != listed(now)) return cat("data.train (", listed(before), " before, now ", listed(now), ")");
  for (size_t i = 0; i < before.size(); ++i) {
    const Json *const old = before[i].find(kDigest), *const found = now[i].find(kDigest);
    if (old == nullptr || found == nullptr || *old == *found) continue;  // older checkpoints do not have it
    return cat("data.train (", now[i].at("name").as_string(), ".bin has the same number of tokens as before, ",
               "but other tokens)");
  }
  return std::nullopt;
}

constexpr auto kFree = std::to_array<std::string_view>(
    {"train.out", "train.resume", "train.tokens", "train.stop_at", "train.device", "train.threads", "train.recompute",
     "train.validate_every", "train.validation_tokens", "data.validation", "data.train", "checkpoint.every",
     "checkpoint.keep_last", "checkpoint.keep_every", "checkpoint.beside", "balance.dead_after",
     "optimizer.spike_limit", "parallel.expert", "parallel.timeout"});

}  // namespace

RunSettings check_options(const TrainOptions& options) {
  check_values(options);
  check_together(options);
  check_used(options);
  RunSettings out;
  out.batch = options.batch_tokens / options.sequence_length;
  out.steps = num_steps(options);
  if (options.stop_at > out.steps) {
    refuse(cat("train.stop_at: ", options.stop_at, " is past the ", out.steps, " steps of the schedule"));
  }
  out.last_step = options.stop_at > 0 ? options.stop_at : out.steps;
  out.schedule = {.kind = step::schedule_kind(options.schedule),
                  .peak = options.lr,
                  .min_ratio = options.min_lr_ratio,
                  .steps = out.steps,
                  .warmup = resolved_warmup(options),
                  .anneal_share = options.anneal_share,
                  .restarts = {}};
  out.stages = growth_stages(options.growth, out.steps);
  for (const GrowthStage& stage : out.stages) {
    if (stage.rewarmup > 0 || stage.lr > 0) {
      out.schedule.restarts.push_back({.at = stage.at_step, .warmup = stage.rewarmup, .peak = stage.lr});
    }
  }
  out.schedule.check();
  out.handover = Handover::from_options(options.handover, options.handover_steps);
  check_handover(out);
  return out;
}

Json identity(const TrainOptions& options) {
  TrainOptions copy = options;
  Json out = Json::object();
  for (const OptionSpec& spec : option_specs(copy)) {
    const Json value = spec.write();
    const bool is_free = std::find(kFree.begin(), kFree.end(), spec.name) != kFree.end();
    if (!is_free && !value.is_null()) out[spec.name] = value;
  }
  out[kSteps] = resolved_steps(options);
  out[kWarmup] = resolved_warmup(options);
  return out;
}

Json identity(const std::vector<data::TokenFile>& files) {
  Json out = Json::array();
  for (const auto& file : files) {
    Json entry = Json::object();
    entry["name"] = file.path().filename().string();
    entry["tokens"] = file.num_tokens();
    entry["documents"] = file.num_documents();
    out.push_back(std::move(entry));
  }
  return out;
}

Json identity_by_content(const std::vector<data::TokenFile>& files) {
  Json::Array out = identity(files).items();
  for (size_t i = 0; i < files.size(); ++i) out[i][kDigest] = files[i].digest();
  return Json::array(std::move(out));
}

TrainOptions with_resolved(const TrainOptions& options, const save::TrainerState& saved) {
  TrainOptions out = options;
  if (out.warmup == kDefaultWarmup && !has_unknown_rates(saved)) out.warmup = saved.settings.at(kWarmup).as_int();
  return out;
}

void check_same_run(const save::TrainerState& saved, const Json& settings, const Json& data) {
  std::vector<std::string> changed;
  const Json defaults = identity(TrainOptions{});  // defaults of settings that newer versions added
  const auto text = [](const Json* value) { return value == nullptr ? std::string("absent") : value->dump(); };
  const auto compare = [&](const std::string& key, const Json* now) {
    if (key == kSteps) return;  // see check_rates_behind
    if (key == kWarmup && has_unknown_rates(saved)) return;
    const Json* before = saved.settings.find(key);
    if (before == nullptr) before = defaults.find(key);
    if (text(before) != text(now)) changed.push_back(cat(key, " (", text(before), " before, now ", text(now), ")"));
  };
  for (const auto& [key, value] : settings.members()) compare(key, &value);
  for (const auto& [key, value] : saved.settings.members()) {  // settings that are left out now
    const bool is_free = std::ranges::find(kFree, key) != kFree.end();
    if (settings.find(key) == nullptr && !is_free && key != kAuxCoef) compare(key, nullptr);
  }
  if (const auto change = data_change(saved.data.items(), data.items())) changed.push_back(*change);
  if (changed.empty()) return;
  refuse(cat("train.resume: the run was made with other settings: ", join(changed),
             " (use the earlier values, or start another run from its checkpoint with train.start=continue)"));
}

void check_rates_behind(const save::TrainerState& saved, const step::Schedule& now) {
  if (has_unknown_rates(saved)) {
    log_warning(
        cat("train.resume: coppice 0.1.0 wrote the checkpoint and did not record the length of the run; the learning "
            "rates are those of a run of ",
            now.steps, " steps from its start"));
    return;
  }
  step::Schedule before = now;
  before.steps = saved.settings.at(kSteps).as_int();
  if (before.steps == now.steps) return;
  if (saved.position.step > now.steps) {
    refuse(cat("train.steps: ", before.steps, " before, now ", now.steps, "; ", saved.position.step,
               " are done (use the earlier value)"));
  }
  for (int64_t step = 1; step <= saved.position.step; ++step) {
    if (before.rate(step) == now.rate(step)) continue;
    refuse(cat("train.steps: ", before.steps, " before, now ", now.steps, ": the learning rate of step ", step,
               ", which is done, was ", before.rate(step), " but would be ", now.rate(step),
               " (use the earlier value; or continue in another directory, with train.start=continue from a checkpoint "
               "before step ",
               step, ")"));
  }
}

void check_same_auxiliary_loss(const save::TrainerState& saved, double coefficient) {
  const Json* before = saved.settings.find(kAuxCoef);
  if (before != nullptr && before->is_number() && before->as_double() != coefficient) {
    refuse(cat("train.resume: balance.aux_coef is ", coefficient, " but was ", before->dump(),
               " before (use the earlier value)"));
  }
  if (saved.settings.find("balance.form") != nullptr) return;
  log_warning(
      "train.resume: coppice 0.1.0 began the run with an auxiliary loss of the layers' averages; it continues with the "
      "loss per layer (balance.form per_layer)");
}

}  // namespace coppice::train
