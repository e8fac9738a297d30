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

/// The lineage `before` with one expansion appended (design.md section 3); starts one if there is none. `settings`, an
/// object of the resolved options, is kept in the step unless it is null.
///
/// Throws   Error{kFormat} if `before` is not a lineage.
Json extend_lineage(const std::optional<Json>& before, const GrowthPlan& plan, std::string_view command,
                    std::string_view source_digest, const Json& settings = {});

// Steps that are no growth.
inline constexpr std::string_view kConvertCommand = "convert", kAverageCommand = "dense_average";

/// What every step begins with: who made it and from which model.
Json lineage_step(std::string_view command, uint64_t seed, std::string_view source_digest);
/// The parents of every expert, by layer.
Json parents_json(const std::vector<methods::LayerPlan>& layers);
/// `before` with a step appended; starts a lineage if there is none.
///
/// Throws   Error{kFormat} if `before` is not a lineage.
Json with_step(const std::optional<Json>& before, Json step);
/// The newest step; nullptr where there is none.
///
/// Throws   Error{kFormat} if `lineage` is none.
const Json* newest_step(const Json& lineage);

/// coppice.json of a model directory, checked whole (but for the plan that a conversion keeps in its step), if there is one.
///
/// Throws   Error{kFormat} naming file, step and key; Error{kIo}.
std::optional<Json> read_lineage(const std::filesystem::path& model);

/// parents[layer] -> [N] of the newest step, if that is an expansion.
///
/// Throws   Error{kFormat} if `lineage` is none.
std::optional<std::map<int64_t, std::vector<uint32_t>>> newest_parents(const Json& lineage);

/// How a model in training still routes by lineage: while the share is above 0, its plain top-K is another function than
/// the one that it was trained with.
struct LineageShare {
  double share = 0;              ///< of the tokens, in the next step
  std::optional<uint64_t> seed;  ///< that draws them; coppice 0.1.0 did not note it
  int64_t steps = 0;             ///< of the whole release; 0: not noted, or kept for good
};

/// `lineage` with a note of it; a share of 0 removes the note.
Json with_lineage_share(Json lineage, const LineageShare& note);
/// The note in a lineage; all zero where there is none.
///
/// Throws   Error{kFormat} if the share is not a number from 0 to 1, or seed or steps are not whole numbers of 0 or more.
LineageShare noted_lineage_share(const Json& lineage);
/// `lineage` with the share removed and with the training step at which its newest expansion was released whole. A step
/// that is noted already stays.
Json with_release_over(const Json& lineage, int64_t step);
/// The training step by which every token had left lineage-unique routing; nothing where no release of the newest expansion
/// has ended.
///
/// Throws   Error{kFormat} if it is not a whole number of 0 or more.
std::optional<int64_t> released_at(const Json& lineage);
/// Its share alone.
double lineage_share(const Json& lineage);

/// How the dormant copies of a model in training wake: their selection biases lie below their parents', by less with
/// every step.
struct WakingNote {
  int64_t steps = 0;  ///< of the whole handover
  int64_t left = 0;   ///< of them; 0: no copy sleeps
};

/// `lineage` with a note of it; none left removes the note.
Json with_waking(Json lineage, const WakingNote& note);
/// The note in a lineage; all zero where there is none.
///
/// Throws   Error{kFormat} if the numbers are not 1 <= left <= steps.
WakingNote noted_waking(const Json& lineage);

/// What to tell who opens a model in the middle of a handover; nothing where there is none.
std::optional<std::string> routing_warning(const std::filesystem::path& model, const std::optional<Json>& lineage);

}  // namespace coppice::plan
