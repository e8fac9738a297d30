#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/io/model_directory.h"
#include "coppice/methods/children.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {

/// The lineage `before` with one expansion appended (docs/concepts.md, "Lineage"); starts one if there is none. The
/// step records `settings`, an object of the resolved options, unless it is null.
///
/// Throws   Error{kFormat} if `before` is not a lineage.
Json extend_lineage(const std::optional<Json>& before, const GrowthPlan& plan, std::string_view command,
                    std::string_view source_digest, const Json& settings = {});

// Steps other than expansions.
inline constexpr std::string_view kConvertCommand = "convert", kAverageCommand = "dense_average";

/// The first keys of every step: which command made it, and from which model.
Json lineage_step(std::string_view command, uint64_t seed, std::string_view source_digest);
/// The parents of every expert, by layer.
Json parents_json(const std::vector<methods::LayerPlan>& layers);
/// `before` with a step appended; starts a lineage if there is none.
///
/// Throws   Error{kFormat} if `before` is not a lineage.
Json with_step(const std::optional<Json>& before, Json step);
/// The newest step; nullptr if there is none.
///
/// Throws   Error{kFormat} if `lineage` is not a lineage.
const Json* newest_step(const Json& lineage);

/// The coppice.json of a model directory, if there is one. All of it is checked except the plan in the step of a
/// conversion.
///
/// Throws   Error{kFormat} naming file, step and key; Error{kIo}.
std::optional<Json> read_lineage(const std::filesystem::path& model);

/// The parents [N] of each layer in the newest step, if that is an expansion.
///
/// Throws   Error{kFormat} if `lineage` is not a lineage.
std::optional<std::map<int64_t, std::vector<uint32_t>>> newest_parents(const Json& lineage);

/// How much of a model's training still uses lineage-unique routing. While the share is above 0, plain top-K computes
/// another function than the one that is trained.
struct LineageShare {
  double share = 0;              ///< share of the tokens with lineage-unique routing, in the next step
  std::optional<uint64_t> seed;  ///< seed that selects those tokens; coppice 0.1.0 did not record it
  int64_t steps = 0;             ///< steps of the whole release; 0: not recorded, or kept for ever
};

/// `lineage` with this record; a share of 0 removes it.
Json with_lineage_share(Json lineage, const LineageShare& note);
/// The record in a lineage; all zero if there is none.
///
/// Throws   Error{kFormat} if the share is not a number from 0 to 1, or seed or steps are not whole numbers of 0 or
///          more.
LineageShare noted_lineage_share(const Json& lineage);
/// `lineage` without the share, and with the training step at which the release of its newest expansion was complete. A
/// step that is recorded already stays.
Json with_release_over(const Json& lineage, int64_t step);
/// The training step from which all tokens use plain top-K; none if no release of the newest expansion is complete.
///
/// Throws   Error{kFormat} if it is not a whole number of 0 or more.
std::optional<int64_t> released_at(const Json& lineage);
/// Only the share of the record.
double lineage_share(const Json& lineage);

/// How far the dormant copies of a model in training are awake: their selection biases are below their parents', by
/// less with every step.
struct WakingNote {
  int64_t steps = 0;  ///< steps of the whole handover
  int64_t left = 0;   ///< steps left; 0: no copy is dormant
};

/// `lineage` with this record; 0 steps left removes it.
Json with_waking(Json lineage, const WakingNote& note);
/// The record in a lineage; all zero if there is none.
///
/// Throws   Error{kFormat} if the numbers are not 1 <= left <= steps.
WakingNote noted_waking(const Json& lineage);

/// `lineage` without what a run records about the handover of its newest expansion: the share, the waking, and the step
/// at which the release was complete.
Json without_run_notes(const Json& lineage);

/// A warning for users of a model whose handover is not complete; none if it is.
std::optional<std::string> routing_warning(const std::filesystem::path& model, const std::optional<Json>& lineage);

/// Warns on stderr if the handover of the source model is not complete: a new lineage does not record its progress.
///
/// Throws   Error{kFormat} if the model's coppice.json is not a lineage.
void warn_of_unfinished_handover(const std::filesystem::path& model);

}  // namespace coppice::plan
