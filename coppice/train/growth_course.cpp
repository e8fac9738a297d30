#include "coppice/train/growth_course.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/model_directory.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/text.h"
#include "coppice/train/growth.h"
#include "coppice/train/growth_scores.h"

namespace coppice::train {
namespace {

constexpr double kSleepsFor = 1.0;   // sigmoids lie between 0 and 1
constexpr double kSameShare = 1e-9;  // tolerance for shares that are quotients of the same numbers

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorCode::kUsage, message); }

/// The largest depth of a selection bias below its lineage; 0 if there is none.
double deepest_sleeper(const nn::Decoder& model, const Parents& parents) {
  double deepest = 0;
  for (const auto& [layer, bias_E] : model.selection_bias()) {
    const auto found = parents.find(layer);
    if (found != parents.end())
      deepest = std::max(deepest, std::ranges::max(step::depths_below_lineage(bias_E, found->second)));
  }
  return deepest;
}

}  // namespace

void write_growth(const std::filesystem::path& directory, const PlannedGrowth& growth) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) throw Error(ErrorCode::kIo, cat(directory, ": cannot be made: ", error.message()));
  if (growth.scores) io::write_file_atomically(directory / "scores.json", growth.scores->to_json().dump(1) + "\n");
  io::write_file_atomically(directory / "plan.toml", plan::plan_toml(growth.plan));
}

GrowthCourse::GrowthCourse(const TrainOptions& options, const RunSettings& settings, Start& start,
                           step::BalanceKind balance)
    : options_(options), settings_(settings), start_(start), routing_seed_(options.seed) {
  read_lineage();
  const auto& lineage = start_.companions.lineage;
  if (lineage) routing_seed_ = plan::noted_lineage_share(*lineage).seed.value_or(options.seed);
  if (!start_.resumed) begin_handover();
  if (start_.resumed && start_.position.grown_at >= 0 && parents_.empty()) {
    throw Error(ErrorCode::kFormat, cat("train.resume: ", io::kLineageFile, " of the newest checkpoint in ",
                                        options.out, " records no expansion; wanted that of step ",
                                        start_.position.grown_at, " (go back to an earlier checkpoint)"));
  }
  check_start(balance);
}

void GrowthCourse::begin_handover() {
  step::Position& position = start_.position;
  // From the run before, if train.start is `continue`; older versions of coppice recorded it only there.
  const plan::WakingNote in_state{.steps = position.wake_steps, .left = position.wake_steps_left()};
  position.growths = 0;
  position.grown_at = -1;
  position.released = position.wake_steps = 0;
  const auto& lineage = start_.companions.lineage;
  const auto note = lineage ? plan::noted_lineage_share(*lineage) : plan::LineageShare{};
  const auto in_lineage = lineage ? plan::noted_waking(*lineage) : plan::WakingNote{};
  const plan::WakingNote& waking = in_lineage.left > 0 ? in_lineage : in_state;
  const HandoverPolicy policy = settings_.handover.policy;
  if (note.share > 0) {
    go_on_releasing(note);
  } else if (waking.left > 0) {
    go_on_waking(waking);
  } else if (parents_.empty()) {
    return;
  } else if (settings_.handover.routes_by_lineage()) {
    const auto over = plan::released_at(*lineage);
    if (!over) position.grown_at = position.step;
    if (over && settings_.stages.empty()) {
      refuse(cat("handover.policy: '", options_.handover, "' for ", options_.model_path,
                 ", whose release from lineage-unique routing was complete by step ", *over, " (", io::kLineageFile,
                 "; set handover.policy none and handover.steps 0)"));
    }
  } else if (deepest_sleeper(start_.model, parents_) >= kSleepsFor) {
    if (policy == HandoverPolicy::kDormant) {
      position.grown_at = position.step;
      position.wake_steps = steps_to_wake();
    } else {
      log_warning(cat(options_.model_path,
                      ": copies are dormant, because their selection bias is 1 or more below their parents'; ",
                      "balancing alone takes many steps to raise it (set handover.policy dormant)"));
    }
  }
}

void GrowthCourse::go_on_releasing(const plan::LineageShare& note) {
  const Handover& handover = settings_.handover;
  step::Position& position = start_.position;
  const std::string found =
      cat("handover.policy: '", options_.handover, "' for ", options_.model_path, ", in which a share of ", note.share,
          " of the tokens has lineage-unique routing (", io::kLineageFile, ")");
  if (!handover.routes_by_lineage()) {
    refuse(cat(found, ": with plain top-K it computes another function; wanted 'release' with handover.steps ",
               note.steps > 0 ? std::to_string(note.steps) : "as in the run before", ", which continues the release",
               note.share == 1 ? ", or 'keep'" : ""));
  }
  position.grown_at = position.step;
  if (note.share == 1) return;
  if (handover.policy == HandoverPolicy::kKeep) {
    refuse(cat(found, ": a release that has begun cannot be reversed; wanted 'release', which continues it"));
  }
  if (note.steps > 0 && handover.steps != note.steps) {
    refuse(cat("handover.steps: ", handover.steps, " for ", options_.model_path, ", whose release takes ", note.steps,
               " steps and has reached a share of ", note.share, " (set handover.steps ", note.steps,
               " to continue it)"));
  }
  position.released = std::llround((1 - note.share) * static_cast<double>(handover.steps));
  if (std::abs(handover.share(position.released + 1) - note.share) > kSameShare) {
    refuse(
        cat("handover.steps: ", handover.steps, " for ", options_.model_path, ", whose release has reached a share of ",
            note.share,
            "; a release with this number of steps never has that share (set the handover.steps of the run before)"));
  }
}

void GrowthCourse::go_on_waking(const plan::WakingNote& note) {
  const Handover& handover = settings_.handover;
  step::Position& position = start_.position;
  if (parents_.empty()) {
    refuse(cat(options_.model_path, ": copies are dormant until step ", position.step + note.left, ", but ",
               io::kLineageFile, " records no expansion that made them (start from an earlier checkpoint)"));
  }
  if (handover.policy != HandoverPolicy::kDormant || (handover.steps != 0 && handover.steps != note.steps)) {
    refuse(cat("handover.policy: '", options_.handover, "' with handover.steps ", handover.steps, " for ",
               options_.model_path, ", whose copies are dormant until step ", position.step + note.left,
               "; wanted 'dormant' with handover.steps ", note.steps, ", which continues to wake them"));
  }
  position.grown_at = position.step;
  position.released = note.steps - note.left;
  position.wake_steps = note.steps;
}

int64_t GrowthCourse::steps_to_wake() const {
  if (settings_.handover.steps > 0) return settings_.handover.steps;
  const double steps = std::ceil(deepest_sleeper(start_.model, parents_) / options_.balance_rate);
  return static_cast<int64_t>(std::clamp(steps, 1.0, static_cast<double>(families::kMaxCount)));
}

void GrowthCourse::check_handover_before(const GrowthStage& stage) const {
  const step::Position& position = start_.position;
  if (position.grown_at < 0) return;
  const double share = settings_.handover.share(stage.at_step + 1 - position.grown_at + position.released);
  if (share <= 0 && stage.at_step >= position.grown_at + position.wake_steps - position.released) return;
  refuse(cat("growth at step ", stage.at_step,
             ": the handover of the expansion before it is not complete by then (expand ",
             settings_.handover.policy == HandoverPolicy::kKeep ? "without 'keep'" : "later", ")"));
}

void GrowthCourse::check_start(step::BalanceKind balance) const {
  const step::Position& position = start_.position;
  const HandoverPolicy policy = settings_.handover.policy;
  const bool is_dormant = policy == HandoverPolicy::kDormant;
  if (policy != HandoverPolicy::kNone && settings_.stages.empty() && position.grown_at < 0 && !start_.resumed) {
    refuse(cat("handover.policy: '", options_.handover,
               "' without an expansion: there is no [[growth]], and model.path was not made by `coppice expand`",
               is_dormant ? " or its copies are awake" : "", " (leave it out)"));
  }
  if (is_dormant && balance != step::BalanceKind::kLossFree) {
    refuse("handover.policy: 'dormant' requires loss-free balancing (set balance.kind loss_free, or use release)");
  }
  if (is_dormant && settings_.handover.steps == 0 && options_.balance_rate == 0) {
    refuse("handover.steps: 0 with balance.rate 0 would never wake the copies (set handover.steps)");
  }
  if (next() != nullptr) check_handover_before(*next());
  if (next() != nullptr && next()->at_step < position.step) {
    refuse(cat("growth: at_step ", next()->at_step, " lies before step ", position.step, ", where the run starts"));
  }
  const auto left = std::span<const GrowthStage>(settings_.stages).subspan(static_cast<size_t>(position.growths));
  for (const GrowthStage& stage : left) check_scores(stage);
  check_stages(left, start_.model.config(), options_.seed, balance);
  (void)lineage_routing();
}

// A run that continues from a checkpoint has the batches of the earlier run before it, which may have been smaller.
void GrowthCourse::check_scores(const GrowthStage& stage) const {
  if (!stage.needs_scores()) return;
  const auto batch = static_cast<uint64_t>(settings_.batch);
  const uint64_t steps = static_cast<uint64_t>(stage.at_step - start_.position.step);
  const uint64_t batches = start_.position.next_sample / batch + steps;
  if (static_cast<uint64_t>(stage.score_batches) <= batches) return;
  const auto number = &stage - settings_.stages.data() + 1;
  throw Error(ErrorCode::kUsage,
              cat("growth ", number, " (at_step ", stage.at_step, "): there are only ", batches, " batches of ",
                  options_.batch_tokens, " tokens before it; wanted ", stage.score_batches,
                  " to score the experts on (lower score_batches, or select uniform)"));
}

const GrowthStage* GrowthCourse::next() const {
  const auto index = static_cast<size_t>(start_.position.growths);
  return index < settings_.stages.size() ? &settings_.stages[index] : nullptr;
}

const GrowthStage* GrowthCourse::due() const {
  return next() != nullptr && next()->at_step == start_.position.step ? next() : nullptr;
}

std::vector<int64_t> GrowthCourse::steps() const {
  std::vector<int64_t> out;
  for (const GrowthStage& stage : settings_.stages) out.push_back(stage.at_step);
  return out;
}

PlannedGrowth GrowthCourse::plan(const GrowthStage& stage, const data::Sampler& sampler) {
  PlannedGrowth out;
  if (stage.needs_scores()) {
    out.scores = score_in_training(start_.model, start_.optimizer, sampler,
                                   {.before = start_.position.next_sample,
                                    .count = static_cast<uint64_t>(stage.score_batches),
                                    .windows = settings_.batch,
                                    .reset_attention = options_.reset_attention});
  }
  auto growth = stage.growth_options(start_.model.config().routing, options_.seed);
  if (settings_.handover.routes_by_lineage() && !growth.router_init) growth.router_init = {"copy", {}};
  out.plan = plan::make_plan(start_.model.config(), growth, out.scores ? &*out.scores : nullptr);
  if (settings_.handover.policy == HandoverPolicy::kDormant) put_copies_to_sleep(out.plan, start_.model);
  return out;
}

void GrowthCourse::carry_out(const plan::GrowthPlan& plan, const std::string& source_digest) {
  grow(start_.model, start_.optimizer, plan);
  auto& lineage = start_.companions.lineage;
  lineage = plan::extend_lineage(this->lineage(), plan, "train", source_digest);
  read_lineage();
  routing_seed_ = options_.seed;
  step::Position& position = start_.position;
  position.growths += 1;
  position.grown_at = position.step;
  position.released = 0;
  position.wake_steps = settings_.handover.policy == HandoverPolicy::kDormant ? steps_to_wake() : 0;
  position.expert_counts.clear();
}

double GrowthCourse::balance_rate() const {
  const step::Position& position = start_.position;
  if (position.growths == 0) return options_.balance_rate;
  const GrowthStage& newest = settings_.stages[static_cast<size_t>(position.growths - 1)];
  return position.step < newest.at_step + newest.balance_steps ? newest.balance_rate : options_.balance_rate;
}

double GrowthCourse::lineage_share() const {
  const step::Position& position = start_.position;
  if (position.grown_at < 0) return 0;
  return settings_.handover.share(position.step + 1 - position.grown_at + position.released);
}

std::optional<step::Waking> GrowthCourse::waking() const {
  const int64_t left = start_.position.wake_steps_left();
  if (left == 0) return std::nullopt;
  return step::Waking{lineages_, left};
}

std::shared_ptr<const nn::LineageRouting> GrowthCourse::lineage_routing() const {
  const double share = lineage_share();
  if (share <= 0) return nullptr;
  if (!routing_) routing_ = train::lineage_routing(start_.companions.lineage, share, routing_seed_);
  if (routing_->share != share) {
    auto changed = std::make_shared<nn::LineageRouting>(*routing_);
    changed->share = share;
    routing_ = std::move(changed);
  }
  return routing_;
}

std::optional<Json> GrowthCourse::lineage() const {
  const auto& lineage = start_.companions.lineage;
  if (!lineage) return std::nullopt;
  const bool releases = settings_.handover.policy == HandoverPolicy::kRelease;
  const double share = lineage_share();
  const step::Position& position = start_.position;
  if (releases && share <= 0 && position.grown_at >= 0) {
    return plan::with_release_over(*lineage, position.grown_at + settings_.handover.steps - position.released);
  }
  const Json noted =
      plan::with_lineage_share(*lineage, {share, routing_seed_, releases ? settings_.handover.steps : 0});
  return plan::with_waking(noted, {.steps = position.wake_steps, .left = position.wake_steps_left()});
}

void GrowthCourse::read_lineage() {
  const auto& lineage = start_.companions.lineage;
  routing_ = nullptr;
  parents_ = lineage ? plan::newest_parents(*lineage).value_or(Parents{}) : Parents{};
  lineages_ = nullptr;
  if (parents_.empty()) return;
  const int64_t before = lineage->at("steps").items().back().at("experts").items()[0].as_int();
  lineages_ = std::make_shared<nn::Lineage>(parents_, before);
}

}  // namespace coppice::train
