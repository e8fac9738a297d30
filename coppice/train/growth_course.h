#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coppice/data/sampler.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/utility.h"
#include "coppice/step/balance.h"
#include "coppice/train/options.h"
#include "coppice/train/run_settings.h"
#include "coppice/train/start.h"

namespace coppice::train {

/// Parents of the experts, by MoE layer; empty before any growth.
using Parents = std::map<int64_t, std::vector<uint32_t>>;

/// What a stage of growth came to.
struct PlannedGrowth {
  plan::GrowthPlan plan;
  std::optional<plan::Scores> scores;  ///< where the selection looks at them; digests are left empty
};

/// Writes `directory`/plan.toml, which `coppice expand CHECKPOINT --plan` takes, and scores.json; replaces what an
/// earlier, killed part of the run left there.
///
/// Throws   Error{kIo}.
void write_growth(const std::filesystem::path& directory, const PlannedGrowth& growth);

/// Where a run stands among its growths, and what that means for its next step. Its model, optimizer, position and
/// lineage are those of `start`.
class GrowthCourse {
 public:
  /// A model in the middle of a handover goes on from there: its coppice.json notes how far a release has come, or the
  /// waking of dormant copies.
  ///
  /// Throws   Error{kUsage}: a stage that lies behind the start or cannot be carried out, a handover without a growth,
  ///          or another one than that which the model is in the middle of.
  GrowthCourse(const TrainOptions& options, const RunSettings& settings, Start& start, step::BalanceKind balance);

  /// The stage that is due after the step that is done; null if none is.
  const GrowthStage* due() const;
  /// Steps of the checkpoints from which the model grows.
  std::vector<int64_t> steps() const;

  /// Scores the experts on the batches before and makes the plan of `stage`.
  ///
  /// With a handover by lineage the router method is `copy` unless the stage names one; dormant copies are put to sleep.
  PlannedGrowth plan(const GrowthStage& stage, const data::Sampler& sampler);
  /// Grows the model. `source_digest` is that of the checkpoint before, for the lineage.
  void carry_out(const plan::GrowthPlan& plan, const std::string& source_digest);

  // Of the next step:
  double balance_rate() const;
  double lineage_share() const;                                       ///< of the tokens that choose by lineage
  std::optional<step::Waking> waking() const;                         ///< while dormant copies wake
  std::shared_ptr<const nn::LineageRouting> lineage_routing() const;  ///< null where that share is 0

  /// Of the newest growth; empty if there was none.
  const Parents& parents() const { return parents_; }
  /// coppice.json of a checkpoint written now.
  std::optional<Json> lineage() const;

 private:
  const GrowthStage* next() const;
  void begin_handover();
  void go_on_releasing(const plan::LineageShare& note);
  void go_on_waking(const plan::WakingNote& note);
  void check_start(step::BalanceKind balance) const;
  void check_scores(const GrowthStage& stage) const;
  void check_handover_before(const GrowthStage& stage) const;
  int64_t steps_to_wake() const;
  void read_lineage();

  const TrainOptions& options_;
  const RunSettings& settings_;
  Start& start_;
  Parents parents_;
  int64_t num_lineages_ = 0;
  uint64_t routing_seed_;  // of lineage routing; another run's if this one goes on with its handover
  mutable std::shared_ptr<const nn::LineageRouting> routing_;  // of the newest growth, with the share last asked for
};

}  // namespace coppice::train
