#include "coppice/train/growth_course.h"

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/train/growth.h"
#include "coppice/train/growth_scores.h"
#include "coppice/upcycle/lineage.h"
#include "coppice/upcycle/plan_text.h"

namespace coppice::train {

void write_growth(const std::filesystem::path& directory, const PlannedGrowth& growth) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) throw Error(ErrorCode::kIo, cat(directory, ": cannot be made: ", error.message()));
  if (growth.scores) io::write_file_atomically(directory / "scores.json", growth.scores->to_json().dump(1) + "\n");
  io::write_file_atomically(directory / "plan.toml", upcycle::plan_toml(growth.plan));
}

GrowthCourse::GrowthCourse(const TrainOptions& options, const RunSettings& settings, Start& start, BalanceKind balance)
    : options_(options), settings_(settings), start_(start) {
  read_lineage();
  Position& position = start_.position;
  if (!start_.resumed) {
    position.growths = 0;  // of this run
    position.grown_at = settings_.handover.routes_by_lineage() && !parents_.empty() ? position.step : -1;
  }
  check_start(balance);
}

void GrowthCourse::check_start(BalanceKind balance) const {
  const auto refuse = [](const std::string& message) { throw Error(ErrorCode::kUsage, message); };
  const Position& position = start_.position;
  const HandoverPolicy policy = settings_.handover.policy;
  if (policy != HandoverPolicy::kNone && settings_.stages.empty() && position.grown_at < 0) {
    refuse(cat("handover.policy: '", options_.handover,
               "' without a growth: there is no [[growth]], and model.path is ",
               "not from `coppice expand` (leave it out)"));
  }
  if (policy == HandoverPolicy::kDormant && balance != BalanceKind::kLossFree) {
    refuse(
        "handover.policy: 'dormant' copies are woken by loss-free balancing alone (set balance.kind loss_free, or "
        "use release)");
  }
  if (next() != nullptr && next()->at_step < position.step) {
    refuse(cat("growth: at_step ", next()->at_step, " lies before step ", position.step, ", where the run starts"));
  }
  const auto left = std::span<const GrowthStage>(settings_.stages).subspan(static_cast<size_t>(position.growths));
  for (const GrowthStage& stage : left) check_scores(stage);
  check_stages(left, start_.model.config(), options_.seed);
  (void)lineage_routing();
}

// A run that goes on from a checkpoint has the batches of its trunk behind it, which may have been smaller.
void GrowthCourse::check_scores(const GrowthStage& stage) const {
  if (!stage.needs_scores()) return;
  const auto batch = static_cast<uint64_t>(settings_.batch);
  const uint64_t steps = static_cast<uint64_t>(stage.at_step - start_.position.step);
  const uint64_t batches = start_.position.next_sample / batch + steps;
  if (static_cast<uint64_t>(stage.score_batches) <= batches) return;
  const auto number = &stage - settings_.stages.data() + 1;
  throw Error(ErrorCode::kUsage,
              cat("growth ", number, " (at_step ", stage.at_step, "): there are ", batches, " batches of ",
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
  auto growth = stage.growth_options(options_.seed);
  if (settings_.handover.routes_by_lineage() && !growth.router_init) growth.router_init = {"copy", {}};
  out.plan = upcycle::make_plan(start_.model.config(), growth, out.scores ? &*out.scores : nullptr);
  if (settings_.handover.policy == HandoverPolicy::kDormant) put_copies_to_sleep(out.plan, start_.model);
  return out;
}

void GrowthCourse::carry_out(const upcycle::GrowthPlan& plan, const std::string& source_digest) {
  grow(start_.model, start_.optimizer, plan);
  auto& lineage = start_.companions.lineage;
  lineage = upcycle::extend_lineage(lineage, plan, "train", source_digest);
  read_lineage();
  start_.position.growths += 1;
  start_.position.grown_at = start_.position.step;
}

double GrowthCourse::balance_rate() const {
  const Position& position = start_.position;
  if (position.growths == 0) return options_.balance_rate;
  const GrowthStage& newest = settings_.stages[static_cast<size_t>(position.growths - 1)];
  return position.step < newest.at_step + newest.balance_steps ? newest.balance_rate : options_.balance_rate;
}

double GrowthCourse::lineage_share() const {
  const Position& position = start_.position;
  return position.grown_at < 0 ? 0 : settings_.handover.share(position.step + 1 - position.grown_at);
}

std::shared_ptr<const nn::LineageRouting> GrowthCourse::lineage_routing() const {
  const double share = lineage_share();
  if (share <= 0) return nullptr;
  if (!routing_) routing_ = train::lineage_routing(start_.companions.lineage, share, options_.seed);
  if (routing_->share != share) {
    auto changed = std::make_shared<nn::LineageRouting>(*routing_);
    changed->share = share;
    routing_ = std::move(changed);
  }
  return routing_;
}

std::optional<Json> GrowthCourse::lineage() const {
  const auto& lineage = start_.companions.lineage;
  return lineage ? std::optional(upcycle::with_lineage_share(*lineage, lineage_share())) : std::nullopt;
}

void GrowthCourse::read_lineage() {
  const auto& lineage = start_.companions.lineage;
  routing_ = nullptr;
  parents_ = lineage ? upcycle::newest_parents(*lineage).value_or(Parents{}) : Parents{};
}

}  // namespace coppice::train
