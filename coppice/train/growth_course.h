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

/// The parents of the experts, by MoE layer; empty before any expansion.
using Parents = std::map<int64_t, std::vector<uint32_t>>;

/// The result of planning a [[growth]] stage.
struct PlannedGrowth {
  plan::GrowthPlan plan;
  std::optional<plan::Scores> scores;  ///< if the selection uses scores; digests are empty
};

/// Writes `directory`/plan.toml, which `coppice expand CHECKPOINT --plan` can read, and scores.json; replaces files
/// that a killed run left there.
///
/// Throws   Error{kIo}.
void write_growth(const std::filesystem::path& directory, const PlannedGrowth& growth);

/// The expansions of a run and their effects on the next step: which expansions are done or due, and how far the
/// handover is. Uses the model, optimizer, position and lineage in `start`.
class GrowthCourse {
 public:
  /// If the handover of the model is not complete, it continues: coppice.json records the progress of a release or of
  /// waking dormant copies.
  ///
  /// Throws   Error{kUsage}: a stage before the start or one that cannot be carried out, a handover without an
  ///          expansion, or a handover that differs from the one in progress.
  GrowthCourse(const TrainOptions& options, const RunSettings& settings, Start& start, step::BalanceKind balance);

  /// The stage that is due after the last finished step; null if there is none.
  const GrowthStage* due() const;
  /// The steps after which the model is expanded, which get a checkpoint.
  std::vector<int64_t> steps() const;

  /// Scores the experts on the last batches and makes the plan of `stage`.
  ///
  /// With lineage-unique routing the router method is `copy` unless the stage sets one; with dormant copies it is
  /// `dormant`.
  PlannedGrowth plan(const GrowthStage& stage, const data::Sampler& sampler);
  /// Expands the model. `source_digest` is the digest of the checkpoint before, for the lineage.
  void carry_out(const plan::GrowthPlan& plan, const std::string& source_digest);

  // Of the next step:
  double balance_rate() const;
  double lineage_share() const;                ///< share of the tokens with lineage-unique routing
  std::optional<step::Waking> waking() const;  ///< while dormant copies wake
  std::shared_ptr<const nn::LineageRouting> lineage_routing() const;  ///< null if that share is 0

  /// The parents of the newest expansion; empty if there was none.
  const Parents& parents() const { return parents_; }
  /// The coppice.json of a checkpoint that is written now.
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
  std::shared_ptr<const nn::Lineage> lineages_;  // the same, for dormant copies; null before any expansion
  uint64_t routing_seed_;  // seed of lineage-unique routing; that of an earlier run if this one continues its handover
  mutable std::shared_ptr<const nn::LineageRouting>
      routing_;  // for the newest expansion, with the share of the last call
};

}  // namespace coppice::train
