#include "coppice/train/run.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/log.h"
#include "coppice/base/median.h"
#include "coppice/base/memory.h"
#include "coppice/base/progress.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/data/random_tokens.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/model_directory.h"
#include "coppice/nn/border.h"
#include "coppice/nn/device.h"
#include "coppice/plan/text.h"
#include "coppice/save/checkpoint_writer.h"
#include "coppice/step/gemm_share.h"
#include "coppice/step/train_step.h"
#include "coppice/step/watch.h"
#include "coppice/train/growth_course.h"
#include "coppice/train/metrics.h"
#include "coppice/train/ranks.h"
#include "coppice/train/resumed_position.h"
#include "coppice/train/run_checks.h"
#include "coppice/train/run_directory.h"
#include "coppice/train/run_metrics.h"
#include "coppice/train/run_settings.h"
#include "coppice/train/start.h"
#include "coppice/train/traffic.h"
#include "coppice/train/validation.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using plan::GrowthPlan;
using Clock = std::chrono::steady_clock;

constexpr size_t kWarmUpSteps = 2;  // not timed, because memory is still being allocated
// Steps between measurements of sibling_cosine, which reads all weights of an expanded model.
constexpr int64_t kSiblingsEvery = 20;

std::vector<data::TokenFile> open_tokens(const std::vector<fs::path>& paths) {
  std::vector<data::TokenFile> files;
  for (const auto& path : paths) files.push_back(data::TokenFile::open(path));
  return files;
}

// The options that the run saves as config.toml.
std::string saved_settings(const TrainOptions& options) {
  TrainOptions saved = options;
  saved.resume = false;
  return to_toml(saved);
}

// The checkpoint to resume from, if the options ask for it.
std::optional<fs::path> checkpoint_to_resume(const TrainOptions& options) {
  if (options.out.empty()) return std::nullopt;
  const auto steps = checkpoint_steps(options.out);
  check_checkpoints_after(options.out, steps.empty() ? -1 : steps.back());
  if (options.resume && steps.empty()) {
    throw Error(ErrorCode::kNotFound,
                cat(options.out, ": has no complete checkpoint to resume from (leave out train.resume)"));
  }
  if (!options.resume && !steps.empty()) {
    throw Error(ErrorCode::kUsage, cat("train.out: ", options.out, " holds a run with ", steps.size(),
                                       " checkpoints (continue it with train.resume, or choose another directory)"));
  }
  if (!options.resume) check_new_run(options.out, saved_settings(options));
  return options.resume ? std::optional(checkpoint_path(options.out, steps.back())) : std::nullopt;
}

// The lock of a run's directory. A launcher that starts all ranks again may do so while the first of those before is still
// ending: it is waited for.
io::DirectoryLock hold_run_soon(const fs::path& run, bool is_launched) {
  const auto end = Clock::now() + (is_launched ? std::chrono::seconds(20) : std::chrono::seconds(0));
  for (;;) {
    try {
      return hold_run(run);
    } catch (const Error&) {
      if (Clock::now() >= end) throw;
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
  }
}

/// Identifies data without reading the tokens.
std::string digest_of(const Json& data) {
  Sha256 sha;
  sha.add(data.dump());
  return sha.hex();
}

// Around what makes weights, masters and moments: they come from the system in blocks of their own, so that passing
// tensors leave no gaps between them. Afterwards a step's tensors are kept for the next step.
class MemoryForStates {
 public:
  MemoryForStates() { take_blocks_from_system(kHeldBytes); }
  ~MemoryForStates() { keep_freed_memory(); }
  MemoryForStates(const MemoryForStates&) = delete;
  MemoryForStates& operator=(const MemoryForStates&) = delete;

 private:
  static constexpr uint64_t kHeldBytes = 1 << 20;
};

class Run {
 public:
  Run(const TrainOptions& options, const RunSettings& settings, const std::optional<fs::path>& resume_from,
      std::optional<io::DirectoryLock> held, const StepObserver& observer, std::shared_ptr<dist::World> world)
      : held_(std::move(held)),
        options_(options),
        observer_(observer),
        settings_(settings),
        world_(std::move(world)),
        device_(nn::compute_device(options.device, "train.device")),
        start_(make_start(options, resume_from, device_, world_)),
        train_files_(options.random_tokens ? random_tokens() : open_tokens(options.data_train)),
        validation_files_(open_tokens(options.data_validation)),
        data_(identity_of_data()),
        sampler_(train_files_, options.data_weights, options.sequence_length, options.seed),
        batches_(sampler_, device_, options.reset_attention),
        step_(step_settings(options, settings, start_.model.config())),
        course_(options, settings, start_of_same_run(resume_from), step_.balance),
        watch_(options.dead_after, options.spike_limit),
        gemm_rate_(step::gemm_rate(options.dtype == "bf16" ? at::kBFloat16 : at::kFloat, device_)) {
    check_ranks(settings_, num_ranks());
    check_model_and_data(options_, settings_, start_, train_files_, validation_files_);
    check_auxiliary_loss(start_, step_);
    if (resume_from) restore_watch(*resume_from);
    if (saves()) open_directory();
  }

  TrainResult run() {
    TrainResult result;
    result.first_step = start_.position.step;
    try {
      nn::at_border([&] {
        loop();
        finish_checkpoint(true);
        if (!validation_) validation_ = validate_now();
      });
    } catch (const Error& error) {
      keep_steps(error);
      log_error(error);
      throw;
    }
    result.last_step = start_.position.step;
    result.tokens_seen = start_.position.tokens_seen;
    result.loss = start_.position.recent_loss();
    result.validation_loss = validation_->loss;
    result.seconds_per_step = median(seconds_);
    if (result.seconds_per_step > 0) {
      result.tokens_per_s = static_cast<double>(options_.batch_tokens) / result.seconds_per_step;
      result.gemm_share = gemm_share(result.seconds_per_step);
    }
    result.peak_rss_bytes = peak_rss_bytes();
    result.checkpoint = checkpoint_;
    return result;
  }

 private:
  /// Random tokens for the whole schedule, even if this process stops earlier.
  std::vector<data::TokenFile> random_tokens() const {
    const int64_t tokens = settings_.steps * options_.batch_tokens + 1;
    return {data::random_tokens(static_cast<uint64_t>(tokens), start_.model.config().vocab_size, options_.seed)};
  }

  /// The start of the run. If it is resumed, checks that settings and position fit this run.
  Start& start_of_same_run(const std::optional<fs::path>& resume_from) {
    if (start_.resumed) {
      check_same_run(*start_.resumed, identity(options_), data_);
      check_rates_behind(*start_.resumed, settings_.schedule);
      check_position(*resume_from, *start_.resumed, settings_);
    }
    return start_;
  }

  void restore_watch(const fs::path& checkpoint) {
    if (start_.resumed->watch.is_null()) return;  // coppice 0.1.0 did not save it
    try {
      watch_.restore(start_.resumed->watch, start_.model.config());
    } catch (const Error& error) {
      throw Error(error.code, cat(checkpoint / io::kTrainerFolder / io::kTrainerFile, ": ", error.what(),
                                  " (go back to an earlier checkpoint)"));
    }
  }

  int64_t num_ranks() const { return world_ ? world_->size() : 1; }
  bool saves() const { return !options_.out.empty(); }

  // Reading the content takes a while, so one rank does.
  Json identity_of_data() const {
    if (options_.out.empty() || options_.random_tokens) return identity(train_files_);
    return Json::parse(from_first_rank(world_.get(), [&] { return identity_by_content(train_files_).dump(); }),
                       "the data of the first rank");
  }

  void open_directory() {
    const int64_t step = start_.position.step;
    on_first_rank(world_.get(), [&] {
      std::error_code error;
      fs::create_directories(options_.out / "checkpoints", error);
      if (error) throw Error(ErrorCode::kIo, cat(options_.out, ": cannot be made: ", error.message()));
      if (!held_) {  // the directory did not exist when train() checked
        held_ = hold_run(options_.out);
        (void)checkpoint_to_resume(options_);
      }
      remove_unfinished(options_.out);
      io::write_file_atomically(options_.out / kSettingsFile, saved_settings(options_));
      log_info(cat("training on ", nn::device_name(device_),
                   world_ ? cat(" and the devices of ", world_->size() - 1, " more ranks") : ""));
      record_ =
          RunRecord(std::make_unique<MetricsLog>(options_.out, start_.resumed ? std::optional(step) : std::nullopt));
    });
    if (!start_.resumed) return;
    checkpoint_ = checkpoint_path(options_.out, step);
    record_.event("resume", step);
  }

  void loop() {
    step::Position& position = start_.position;
    const int64_t left = std::max<int64_t>(0, settings_.last_step - position.step);
    Progress progress("train", static_cast<uint64_t>(left * options_.batch_tokens), ProgressUnit::kTokens);
    if (start_.resumed && saves() && !resumed_with_validation() && validation_is_due()) record_validation();
    while (position.step < settings_.last_step) {
      if (const GrowthStage* stage = course_.due()) {
        const MemoryForStates held;
        grow_now(*stage);
      }
      prepare_step();
      (void)traffic_.read(start_.optimizer.bytes_to_gather());  // of this step, not of what came between
      const auto begin = Clock::now();
      const step::StepReport report = step::train_step(start_.model, start_.optimizer, batches_, step_, position);
      const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      if (++steps_run_ > kWarmUpSteps) seconds_.push_back(seconds);

      // The step is saved before anything else that may fail.
      const bool stopped = report.is_stopped;
      validation_.reset();
      write_metrics(report, seconds);
      warn(report);
      finish_checkpoint(false);
      if (is_last() || stopped || is_due(options_.checkpoint_every)) save();
      if (!stopped && validation_is_due()) record_validation();
      progress.advance(static_cast<uint64_t>(options_.batch_tokens));
      if (observer_) observer_(static_cast<uint64_t>(options_.batch_tokens));
      progress.note(cat("step ", position.step, " loss ", fixed_text(report.loss, 4)));
      if (!stopped) continue;  // a signal that arrives later is noticed after the next step, which writes a checkpoint
      finish_checkpoint(true);
      check_interrupt();
      throw Error(ErrorCode::kInterrupted, "a signal stopped another rank; all have stopped after the same step");
    }
  }

  bool resumed_with_validation() const {
    return from_first_rank(world_.get(), [&] { return record_.resumed_with_validation() ? "yes" : "no"; }) == "yes";
  }

  bool is_last() const { return start_.position.step == settings_.last_step; }
  bool is_due(int64_t every) const { return every > 0 && start_.position.step % every == 0; }
  bool validation_is_due() const { return is_last() || is_due(options_.validate_every); }

  /// Sets what depends on earlier steps and expansions.
  void prepare_step() {
    step_.balance_rate = course_.balance_rate();
    step_.lineage = course_.lineage_routing();
    step_.waking = course_.waking();
    step_.gradient_limit = watch_.gradient_limit();
    step_.keep_routing = saves() && !course_.parents().empty();
  }

  void grow_now(const GrowthStage& stage) {
    const int64_t step = start_.position.step;
    const fs::path before = checkpoint_path(options_.out, step);
    start_.optimizer.wait_for_values(start_.model.config().num_layers);
    finish_checkpoint(true);
    if (saves() && checkpoint_ != before) {
      save();
      finish_checkpoint(true);
    }
    Json fields = Json::object();
    if (saves()) fields["validation_before"] = to_json(validate_now().in_force());
    PlannedGrowth growth = course_.plan(stage, sampler_);
    require_same(world_.get(), cat("the plan of the expansion after step ", step), plan::plan_toml(growth.plan));
    const std::string digest =
        saves() ? from_first_rank(world_.get(), [&] { return families::open_model(before).digest(); }) : std::string();
    on_first_rank(world_.get(), [&] {
      if (!saves()) return;
      if (growth.scores) {
        growth.scores->model_digest = digest;
        growth.scores->tokens_digest = digest_of(identity(train_files_));
      }
      write_growth(growth_path(options_.out, step), growth);
    });
    course_.carry_out(growth.plan, digest);
    watch_.forget_experts();
    const GrowthPlan& plan = growth.plan;
    log_info(
        cat("step ", step, ": expanded from ", plan.experts_before, " to ", plan.experts_after, " experts per layer"));
    if (!saves()) return;
    const Validation after = validate_now();
    fields["validation_after"] = to_json(after.in_force());
    if (!after.loss_lineage.empty()) fields["validation_plain"] = to_json(after.loss);
    fields["experts"] = Json::array({Json(plan.experts_before), Json(plan.experts_after)});
    fields["plan"] = (growth_path("", step) / "plan.toml").string();
    record_.event("growth", step, fields);
  }

  /// Validates with the routing of the next step.
  Validation validate_now() {
    start_.optimizer.wait_for_values(start_.model.config().num_layers);
    return validate(start_.model, validation_files_,
                    {.sequence_length = options_.sequence_length,
                     .batch = options_.micro_batch,
                     .max_tokens = static_cast<uint64_t>(options_.validation_tokens),
                     .reset_attention = options_.reset_attention,
                     .lineage = {}},
                    course_.lineage_routing());
  }

  double gemm_share(double seconds) const {
    const double flops = step::flops_per_token(start_.model, options_.sequence_length);
    return flops * static_cast<double>(options_.batch_tokens) /
           (gemm_rate_ * static_cast<double>(num_ranks()) * seconds);
  }

  void write_metrics(const step::StepReport& report, double seconds) {
    const step::Position& position = start_.position;
    const auto sent = traffic_.read(start_.optimizer.bytes_to_gather());
    const bool has_siblings = saves() && !course_.parents().empty() &&
                              (position.step % kSiblingsEvery == 0 || position.step == position.grown_at + 1);
    // Ranks bring the weights and the tokens of siblings together.
    const auto routing = step::sibling_routing(report, course_.parents(), world_.get());
    const auto siblings =
        has_siblings ? sibling_scalars(start_.model, start_.optimizer, course_.parents()) : std::vector<Scalar>();
    if (!record_.is_kept()) return;
    std::vector<Scalar> values{{"loss", report.loss},
                               {"lr", report.lr},
                               {"tokens_seen", static_cast<double>(position.tokens_seen)},
                               {"tokens_per_s", static_cast<double>(options_.batch_tokens) / seconds},
                               {"gemm_share", gemm_share(seconds)},
                               {"grad_norm", report.grad_norm}};
    if (step_.balance == step::BalanceKind::kAux) values.emplace_back("aux", report.aux_loss);
    if (step_.z_coef > 0) values.emplace_back("z", report.z_loss);
    if (step_.lineage) values.emplace_back("lineage_share", step_.lineage->share);
    values.insert(values.end(), sent.begin(), sent.end());
    const auto append = [&](const std::vector<Scalar>& more) { values.insert(values.end(), more.begin(), more.end()); };
    append(load_scalars(report, routing));
    append(siblings);
    record_.step(position.step, values);
  }

  /// Validates and adds the losses to the lines of the step.
  void record_validation() {
    validation_ = validate_now();
    if (!record_.is_kept() || validation_->loss.empty()) return;
    const int64_t step = start_.position.step;
    std::vector<Scalar> values;
    for (const auto& [name, loss] : validation_->loss) values.emplace_back(cat("validation/", name), loss);
    for (const auto& [name, loss] : validation_->loss_lineage) {
      values.emplace_back(cat("validation_lineage/", name), loss);
    }
    record_.step(step, values);
    if (validation_->routing.is_null()) return;
    Json fields = Json::object();
    fields["tokens"] = validation_->routing;
    record_.event("routing", step, fields);
  }

  void warn(const step::StepReport& report) {
    for (const step::Warning& warning : watch_.look(start_.position.step, report)) {
      if (is_first(world_.get())) log_warning(warning.message);
      record_.event(warning.event, start_.position.step, warning.fields);
    }
  }

  void save() {
    if (!saves()) return;
    start_.optimizer.wait_for_values(start_.model.config().num_layers);
    finish_checkpoint(true);
    save::Companions companions = start_.companions;
    companions.lineage = course_.lineage();
    writer_.write(checkpoint_path(options_.out, start_.position.step), start_.model, start_.optimizer,
                  {start_.position, identity(options_), data_, watch_.memory()}, companions,
                  options_.checkpoint_beside);
  }

  /// Records a completed checkpoint; with `wait`, waits for the one being written.
  void finish_checkpoint(bool wait) {
    const auto written = writer_.finished(wait);
    if (!written) return;
    checkpoint_ = written->path;
    Json fields = Json::object();
    fields["path"] = fs::relative(checkpoint_, options_.out).string();
    fields["seconds"] = written->seconds;
    fields["blocked_seconds"] = written->blocked_seconds;
    record_.event("checkpoint", written->step, fields);
    on_first_rank(world_.get(), [&] {
      prune_checkpoints(options_.out,
                        {.last = options_.keep_last, .every = options_.keep_every, .steps = course_.steps()});
    });
  }

  /// Writes a checkpoint of the finished steps after a signal, or after an error that does not concern them.
  void keep_steps(const Error& error) {
    const bool too_steep = dynamic_cast<const step::GradientLimitError*>(&error) != nullptr;
    const bool diverged = error.code == ErrorCode::kNonFinite && !too_steep;
    if (!saves() || diverged || error.code == ErrorCode::kInternal || steps_run_ == 0 || start_.optimizer.is_torn())
      return;
    // An error of one rank alone: the others are elsewhere, and a checkpoint needs all.
    if (world_ && !too_steep && error.code != ErrorCode::kInterrupted) return;
    try {
      finish_checkpoint(true);
      if (checkpoint_ == checkpoint_path(options_.out, start_.position.step)) return;
      save();
      finish_checkpoint(true);
    } catch (const Error& second) {
      log_warning(cat(options_.out, ": the steps since the last checkpoint are lost: ", second.what()));
    }
  }

  void log_error(const Error& error) {
    Json fields = Json::object();
    fields["message"] = error.what();
    try {
      record_.event(error.code == ErrorCode::kInterrupted ? "interrupt" : "error", start_.position.step, fields);
    } catch (const Error&) {
      log_warning(cat(options_.out, ": the error could not be written to metrics.jsonl"));  // probably a full disk
    }
  }

  std::optional<io::DirectoryLock> held_;  // lock of the run's directory
  const TrainOptions& options_;
  const StepObserver& observer_;
  const RunSettings& settings_;
  std::shared_ptr<dist::World> world_;  // null: one rank
  at::Device device_;
  Start start_;  // its position, model and optimizer change during the run
  std::vector<data::TokenFile> train_files_, validation_files_;
  Json data_;  // must be the same in a resumed run
  data::Sampler sampler_;
  step::BatchReader batches_;
  step::StepSettings step_;
  GrowthCourse course_;
  step::Watch watch_;
  double gemm_rate_;  // operations per second
  TrafficMeter traffic_{world_.get()};
  RunRecord record_;
  save::CheckpointWriter writer_;
  fs::path checkpoint_;                   // the newest complete checkpoint
  std::optional<Validation> validation_;  // validation of the current step
  std::vector<double> seconds_;
  size_t steps_run_ = 0;
};

}  // namespace

TrainResult train(const TrainOptions& options, const StepObserver& observer, std::shared_ptr<dist::World> world) {
  if (world && world->size() == 1) world = nullptr;
  (void)check_options(options);
  std::optional<io::DirectoryLock> held;
  const fs::path found = from_first_rank(world.get(), [&] {
    std::error_code none;
    if (!options.out.empty() && fs::is_directory(options.out, none)) {
      held = hold_run_soon(options.out, world != nullptr);
    }
    return checkpoint_to_resume(options).value_or(fs::path()).string();
  });
  const auto resume_from = found.empty() ? std::nullopt : std::optional(found);
  const TrainOptions own = resume_from ? with_resolved(options, save::TrainerState::read(*resume_from)) : options;
  const RunSettings settings = check_options(own);
  at::set_num_threads(
      static_cast<int>(options.threads > 0 ? options.threads : static_cast<int64_t>(default_threads())));
  return nn::at_border([&] {
    Run run = [&] {
      const MemoryForStates states;
      return Run(own, settings, resume_from, std::move(held), observer, world);
    }();
    return run.run();
  });
}

}  // namespace coppice::train
